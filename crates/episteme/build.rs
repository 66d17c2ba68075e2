//! Linking the binary at a fixed address.

fn main() {
    // A position-independent executable of this size begins with 170,000 relocations, 2.5 MB of pages to touch: four of the six
    // milliseconds that `--version` took, and each stage is a process of this binary.
    println!("cargo::rustc-link-arg-bins=-no-pie");
    println!("cargo::rerun-if-changed=build.rs");
}
