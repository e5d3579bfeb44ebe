"""From annotation files to batches: file -> sample -> crop -> model -> loss."""
