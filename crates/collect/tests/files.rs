//! `collect.files` and the unpacking of archives.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use artifact::event::Collected;
use artifact::{RunContext, Settings, Stage, StageError};
use collect::Files;
use flate2::Compression;
use flate2::write::GzEncoder;

fn stage(config: serde_json::Value) -> Files {
    serde_json::from_value(config).expect("a config")
}

fn settings(base: &Path) -> Settings {
    Settings { base: base.to_owned(), ..Settings::default() }
}

/// Runs the stage in `base`; the names of what came out, sorted.
fn run(base: &Path, config: serde_json::Value) -> Result<Vec<String>, StageError> {
    let output = tempfile::tempdir().expect("a folder");
    let (sink, stop) = (Collected::default(), AtomicBool::new(false));
    let context = RunContext::new("raw", BTreeMap::new(), output.path().to_owned(), settings(base), &sink, &stop);
    stage(config).run(&context)?;
    let files = artifact::Input::open(output.path())?.files()?;
    Ok(files.into_iter().map(|(name, _)| name).collect())
}

fn tar_gz(members: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, kind, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        if matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link) {
            header.set_link_name("/etc").expect("a name");
        }
        // The tar crate refuses to write bad names: write them as an attacker would.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *bytes).expect("memory");
    }
    builder.into_inner().and_then(GzEncoder::finish).expect("memory")
}

use tar::EntryType::{Link, Regular, Symlink};

/// Unpacks an archive that must be refused, and looks that nothing was written outside.
fn refused(archive: &[u8], name: &str, more: serde_json::Value) -> String {
    let base = tempfile::tempdir().expect("a folder");
    fs::write(base.path().join(name), archive).expect("it is written");
    let mut config = serde_json::json!({ "path": name });
    config.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    let error = run(base.path(), config).expect_err("it is refused").to_string();
    assert_eq!(fs::read_dir(base.path()).expect("it is there").count(), 1, "something was written outside");
    error
}

#[test]
fn members_that_want_out_are_refused_by_name() {
    for name in ["../evil", "a/../../evil", "/tmp/evil"] {
        let error = refused(&tar_gz(&[("good", Regular, b"x"), (name, Regular, b"x")]), "a.tar.gz", serde_json::json!({}));
        assert!(error.contains(name) && error.contains("a.tar.gz"), "{error}");
    }
}

#[test]
fn links_are_refused_so_that_nothing_is_written_through_them() {
    for kind in [Symlink, Link] {
        let error = refused(&tar_gz(&[("door", kind, b""), ("door/evil", Regular, b"x")]), "a.tgz", serde_json::json!({}));
        assert!(error.contains("`door` is a link"), "{error}");
    }
}

#[test]
fn a_name_that_comes_twice_is_refused() {
    let error = refused(&tar_gz(&[("a", Regular, b"1"), ("./a", Regular, b"2")]), "a.tar.gz", serde_json::json!({}));
    assert!(error.contains("comes twice"), "{error}");
}

#[test]
fn too_many_files_and_too_many_bytes_end_at_the_limit() {
    let two = tar_gz(&[("a", Regular, &[7; 5000]), ("b", Regular, &[7; 5000])]);
    assert!(refused(&two, "a.tar.gz", serde_json::json!({ "max_files": 1 })).contains("more than 1 files"));
    assert!(refused(&two, "a.tar.gz", serde_json::json!({ "max_bytes": 9999 })).contains("more than 9999 bytes"));
}

#[test]
fn an_archive_that_is_cut_short_names_where() {
    let noise: Vec<u8> = (0..60_000u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    let whole = tar_gz(&[("first", Regular, b"x"), ("second", Regular, &noise)]);
    let error = refused(&whole[..whole.len() / 2], "a.tar.gz", serde_json::json!({}));
    assert!(error.contains("`second`"), "{error}");
}

#[test]
fn a_zip_is_unpacked_and_one_that_wants_out_is_refused() {
    let zipped = |name: &str| {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        writer.start_file(name, zip::write::SimpleFileOptions::default()).expect("memory");
        writer.write_all(b"x").expect("memory");
        writer.finish().expect("memory").into_inner()
    };
    let base = tempfile::tempdir().expect("a folder");
    fs::write(base.path().join("a.zip"), zipped("in/it.txt")).expect("it is written");
    assert_eq!(run(base.path(), serde_json::json!({ "path": "a.zip" })).expect("it is sound"), ["in/it.txt"]);
    assert!(refused(&zipped("../evil"), "a.zip", serde_json::json!({})).contains("../evil"));
}

#[test]
fn a_folder_keeps_its_shape_and_a_glob_picks() {
    let base = tempfile::tempdir().expect("a folder");
    for name in ["photos/cat/1.jpg", "photos/cat/2.txt", "photos/dog/3.jpg"] {
        let path = base.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).and_then(|()| fs::write(path, name)).expect("it is written");
    }
    assert_eq!(run(base.path(), serde_json::json!({ "path": "photos" })).expect("it is there"), ["cat/1.jpg", "cat/2.txt", "dog/3.jpg"]);
    assert_eq!(run(base.path(), serde_json::json!({ "path": "photos/**/*.jpg" })).expect("it is there"), ["cat/1.jpg", "dog/3.jpg"]);
    assert_eq!(run(base.path(), serde_json::json!({ "path": "photos/cat/2.txt" })).expect("it is there"), ["2.txt"]);
}

#[test]
fn touching_a_file_does_not_change_the_key_and_changing_it_does() {
    let base = tempfile::tempdir().expect("a folder");
    let path = base.path().join("data.csv");
    let outside = || stage(serde_json::json!({ "path": "data.csv" })).outside(&settings(base.path())).expect("it is there");
    fs::write(&path, "a").expect("it is written");
    let first = outside();
    fs::write(&path, "a").expect("it is written");
    assert_eq!(outside(), first);
    fs::write(&path, "b").expect("it is written");
    assert_ne!(outside(), first);
}
