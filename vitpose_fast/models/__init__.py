"""ViTPose and ViTPose++ models: `config` (frozen options), `backbone`, `heads`, `vitpose` (the whole)."""
