//! Rules that other programs put on a node.
