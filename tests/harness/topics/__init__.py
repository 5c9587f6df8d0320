"""What the test files of one topic share, a module for each topic."""

from __future__ import annotations
