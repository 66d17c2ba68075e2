//! f as fitted parameters: what process fits and apply replays.
