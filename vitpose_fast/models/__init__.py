"""ViTPose and ViTPose++ models: the options (`config`), `backbone`, `heads`, and the whole model (`vitpose`)."""
