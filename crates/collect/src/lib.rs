//! Collect: downloads, folders and archives, generators; the world into checked raw files.
