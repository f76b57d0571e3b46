//! Whole configurations of each tool.
