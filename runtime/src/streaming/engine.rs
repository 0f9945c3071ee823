//! The engine as the node that sessions see.
