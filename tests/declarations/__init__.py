"""Declarations with the shapes of real providers. Together they use every key of the language."""

from pathlib import Path

DECLARATIONS = Path(__file__).parent
