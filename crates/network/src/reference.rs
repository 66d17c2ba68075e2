//! The operations as plain loops, and the properties that hold against them.
