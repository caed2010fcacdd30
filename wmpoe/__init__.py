"""World models with composable memory experts."""

__version__ = '0.1.0'
