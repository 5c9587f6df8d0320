"""What should exist for an attachment, as ordered steps with their undo and comparison. No I/O."""
