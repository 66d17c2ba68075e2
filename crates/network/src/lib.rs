//! g as a function: layers, forward and backward on dfdx's tape.
