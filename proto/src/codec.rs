//! How a message becomes a frame and back.
