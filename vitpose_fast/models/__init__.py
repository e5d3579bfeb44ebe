"""ViTPose and ViTPose++ models: their options (`config`), `backbone`, `heads`, and the whole model (`vitpose`)."""
