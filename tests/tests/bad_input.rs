//! Bad input of every kind: a clear message, a non-zero exit, and a sound store.

use std::fs;
use std::io::Write;

use episteme_tests::{SMALL, Said, Scratch};
use flate2::Compression;
use flate2::write::GzEncoder;

/// Runs a pipeline that must fail and leave the store sound.
#[track_caller]
fn refused(scratch: &Scratch, pipeline: &str, code: i32, naming: &[&str]) -> Said {
    scratch.write("bad.toml", pipeline);
    let said = scratch.episteme(&["run", "bad.toml"]);
    said.fails(code, naming);
    scratch.sound();
    said
}

/// `SMALL` with one text replaced by another.
fn small_with(from: &str, to: &str) -> String {
    assert!(SMALL.contains(from));
    SMALL.replace(from, to)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// An IDX file: unsigned bytes with these dimensions.
fn idx(dimensions: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, dimensions.len() as u8];
    dimensions.iter().for_each(|size| file.extend(size.to_be_bytes()));
    file.extend(bytes);
    file
}

/// A folder with the two IDX files of a train set, read by a pipeline of two stages.
fn idx_pipeline(scratch: &Scratch, images: &[u8], labels: &[u8]) -> &'static str {
    scratch.write("raw/train-images-idx3-ubyte.gz", images);
    scratch.write("raw/train-labels-idx1-ubyte.gz", labels);
    "name = 'bad'\n[stages.raw]\nuses = 'collect.files'\npath = 'raw'\n[stages.images]\nuses = 'store.idx'\ninput = 'raw'\n"
}

// --- the pipeline file -----------------------------------------------------------------------------------------------

#[test]
fn a_wrong_key_is_shown_with_line_caret_and_suggestion() {
    let said = refused(&Scratch::new(), &small_with("epochs = 2", "epoch = 2"), 2, &["bad.toml", "epoch", "did you mean `epochs`?"]);
    let line = 1 + SMALL.lines().position(|line| line.starts_with("epochs")).expect("it is there");
    assert!(said.stderr.contains(&format!("bad.toml:{line}:1")), "line {line} is not named:\n{}", said.stderr);
}

#[test]
fn a_wrong_type_says_what_was_found_and_what_is_needed() {
    refused(&Scratch::new(), &small_with("epochs = 2", "epochs = 'two'"), 2, &["`epochs` is the text \"two\"", "a whole number"]);
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let pipeline = small_with("epochs = 2", "epoch = 2").replace("train = 600", "train = 'many'").replace("store.idx", "store.idxs");
    refused(&Scratch::new(), &pipeline, 2, &["did you mean `epochs`?", "\"many\"", "did you mean `store.idx`?"]);
}

#[test]
fn a_cycle_is_named_along_its_path() {
    let pipeline = "name = 'bad'\n[stages.a]\nuses = 'process.images'\ninput = 'b'\n[stages.b]\nuses = 'store.idx'\ninput = 'a'\n";
    let said = refused(&Scratch::new(), pipeline, 2, &["cycle"]);
    assert!(said.stderr.contains("a → b → a") || said.stderr.contains("b → a → b"), "{}", said.stderr);
}

#[test]
fn a_stage_that_does_not_exist_is_named_with_a_suggestion() {
    refused(&Scratch::new(), &small_with("input = \"raw\"", "input = \"rwa\""), 2, &["rwa", "did you mean `raw`?"]);
}

#[test]
fn a_stage_of_the_wrong_kind_is_refused_before_anything_runs() {
    let scratch = Scratch::new();
    refused(&scratch, &small_with("input = \"clean\"", "input = \"images\""), 2, &["processed", "dataset"]);
    assert!(scratch.objects().is_empty());
}

#[test]
fn a_kernel_bigger_than_its_image_is_refused_before_anything_runs() {
    let scratch = Scratch::new();
    refused(&scratch, &small_with("conv 16 3x3 relu", "conv 16 15x15 relu"), 2, &["15x15", "13x13"]);
    assert!(scratch.objects().is_empty());
}

#[test]
fn a_pipeline_that_is_no_toml_is_shown_at_its_line() {
    refused(&Scratch::new(), "name = 'bad'\n[stages.raw\nuses = 'x'\n", 2, &["bad.toml"]);
}

#[test]
fn a_missing_pipeline_file_is_named() {
    let scratch = Scratch::new();
    scratch.episteme(&["run", "nowhere.toml"]).fails(2, &["nowhere.toml"]);
}

#[test]
fn a_set_that_names_nothing_is_refused() {
    let scratch = Scratch::new();
    scratch.write("small.toml", SMALL);
    scratch.episteme(&["run", "small.toml", "--set", "stages.modle.epochs=1"]).fails(2, &["modle"]);
}

// --- collect ---------------------------------------------------------------------------------------------------------

#[test]
fn a_missing_folder_is_named_before_anything_runs() {
    let pipeline = "name = 'bad'\n[stages.raw]\nuses = 'collect.files'\npath = 'not-there'\n";
    let said = refused(&Scratch::new(), pipeline, 2, &["not-there"]);
    assert!(!said.stderr.is_empty());
}

#[test]
fn a_wrong_checksum_names_what_was_expected_and_found() {
    let scratch = Scratch::new();
    scratch.write("mirror/data.bin", b"not what was pinned");
    let pinned = "0".repeat(64);
    let url = format!("file://{}", scratch.path().join("mirror/data.bin").display());
    let pipeline =
        format!("name = 'bad'\n[stages.raw]\nuses = 'collect.http'\nretries = 0\nfiles = [{{ url = '{url}', sha256 = '{pinned}' }}]\n");
    refused(&scratch, &pipeline, 1, &["data.bin", &pinned]);
}

#[test]
fn an_archive_that_wants_out_of_its_folder_is_refused() {
    let scratch = Scratch::new();
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    // `set_path` refuses `..`, as it should: write the name as an attacker would.
    header.as_mut_bytes()[..14].copy_from_slice(b"../escaped.txt");
    header.set_cksum();
    let mut archive = tar::Builder::new(Vec::new());
    archive.append(&header, &b"evil"[..]).expect("memory");
    scratch.write("in/archive.tar.gz", gzip(&archive.into_inner().expect("memory")));
    let pipeline = "name = 'bad'\n[stages.raw]\nuses = 'collect.files'\npath = 'in/archive.tar.gz'\n";
    refused(&scratch, pipeline, 1, &["../escaped.txt"]);
    assert!(!scratch.path().join("store/staging/escaped.txt").exists());
}

// --- store -----------------------------------------------------------------------------------------------------------

#[test]
fn a_truncated_gzip_is_named() {
    let scratch = Scratch::new();
    let images = gzip(&idx(&[4, 28, 28], &[7; 4 * 784]));
    let pipeline = idx_pipeline(&scratch, &images[..images.len() / 2], &gzip(&idx(&[4], &[0, 1, 2, 3])));
    refused(&scratch, pipeline, 1, &["train-images-idx3-ubyte.gz"]);
}

#[test]
fn an_idx_header_that_lies_is_found_before_memory_is_taken_for_it() {
    let scratch = Scratch::new();
    let pipeline = idx_pipeline(&scratch, &gzip(&idx(&[4_000_000_000, 28, 28], &[7; 784])), &gzip(&idx(&[1], &[0])));
    refused(&scratch, pipeline, 1, &["train-images-idx3-ubyte.gz", "4000000000"]);
}

#[test]
fn fewer_labels_than_images_are_counted() {
    let scratch = Scratch::new();
    let pipeline = idx_pipeline(&scratch, &gzip(&idx(&[3, 2, 2], &[7; 12])), &gzip(&idx(&[2], &[0, 1])));
    refused(&scratch, pipeline, 1, &["3", "2", "labels"]);
}

#[test]
fn a_jpeg_that_is_no_jpeg_is_named() {
    let scratch = Scratch::new();
    scratch.write("photos/cat/1.jpg", b"<html>404 not found</html>");
    let pipeline = "name = 'bad'\n[stages.raw]\nuses = 'collect.files'\npath = 'photos'\n[stages.images]\nuses = 'store.image_folder'\ninput = 'raw'\n";
    refused(&scratch, pipeline, 1, &["cat/1.jpg"]);
}

#[test]
fn a_ragged_csv_row_is_named_by_file_and_line() {
    let scratch = Scratch::new();
    scratch.write("table.csv", "a,b,c\n1,2,3\n4,5\n6,7,8\n");
    let pipeline =
        "name = 'bad'\n[stages.raw]\nuses = 'collect.files'\npath = 'table.csv'\n[stages.rows]\nuses = 'store.csv'\ninput = 'raw'\n";
    refused(&scratch, pipeline, 1, &["table.csv", "3", "2"]);
}

#[test]
fn a_damaged_parquet_is_named() {
    let scratch = Scratch::new();
    scratch.write("table.parquet", b"PAR1 this is not the Parquet you are looking for PAR1");
    let pipeline = "name = 'bad'\n[stages.raw]\nuses = 'collect.files'\npath = 'table.parquet'\n[stages.rows]\nuses = 'store.parquet'\ninput = 'raw'\n";
    refused(&scratch, pipeline, 1, &["table.parquet"]);
}

// --- process and learn -----------------------------------------------------------------------------------------------

const TABLE: &str = "name = 'bad'\n[stages.raw]\nuses = 'collect.files'\npath = 'table.csv'\n[stages.rows]\nuses = 'store.csv'\ninput = 'raw'\n\
                     [stages.clean]\nuses = 'process.table'\ninput = 'rows'\nlabel = 'class'\n";

fn table(class: impl Fn(usize) -> &'static str) -> String {
    (0..60).fold("x,class\n".to_owned(), |text, row| format!("{text}{}.5,{}\n", row * 7 % 13, class(row)))
}

#[test]
fn a_missing_label_column_comes_with_a_suggestion() {
    let scratch = Scratch::new();
    scratch.write("table.csv", table(|row| ["a", "b"][row % 2]).replace("x,class", "x,klass"));
    refused(&scratch, TABLE, 1, &["class", "klass"]);
}

#[test]
fn rows_without_a_label_are_counted() {
    let scratch = Scratch::new();
    scratch.write("table.csv", table(|row| ["a", "b", ""][row % 3]));
    refused(&scratch, TABLE, 1, &["20", "label"]);
}

#[test]
fn a_network_with_too_few_outputs_names_the_classes() {
    let scratch = Scratch::new();
    refused(&scratch, &small_with("\"dense 10\"", "\"dense 9\""), 1, &["dense 9", "10"]);
}

#[test]
fn a_single_class_is_nothing_to_learn_from() {
    let scratch = Scratch::new();
    scratch.write("table.csv", table(|_| "same"));
    let pipeline = format!("{TABLE}[stages.model]\nuses = 'learn.classifier'\ninput = 'clean'\nlayers = ['dense 2']\n");
    refused(&scratch, &pipeline, 1, &["same"]);
}

// --- the store itself ------------------------------------------------------------------------------------------------

#[test]
fn a_store_that_cannot_be_written_is_named() {
    let scratch = Scratch::new();
    scratch.write("small.toml", SMALL);
    let file = scratch.write("a-file", "not a folder");
    let said = scratch.episteme(&["run", "small.toml", "--store", &file.join("store").to_string_lossy()]);
    assert!(said.code == 1 || said.code == 2, "{}", said.stderr);
    said.fails(said.code, &["a-file/store", "--store"]);
}

#[test]
fn a_full_disk_is_said_and_the_run_completes_once_there_is_room() {
    let scratch = Scratch::new();
    scratch.write("small.toml", SMALL);
    fs::create_dir(scratch.store()).expect("a new folder");
    let store = scratch.store().to_string_lossy().into_owned();
    let mount = |options: &str| std::process::Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs", &store]).output();
    if !mount("size=1m").is_ok_and(|output| output.status.success()) {
        println!("skipped: a small file system cannot be mounted here");
        return;
    }
    let full = scratch.episteme(&["run", "small.toml"]);
    let again = std::process::Command::new("mount").args(["-o", "remount,size=64m", &store]).status();
    let roomy = scratch.episteme(&["run", "small.toml"]);
    let leftovers = scratch.leftovers();
    let unmounted = std::process::Command::new("umount").arg(&store).status();
    full.fails(1, &["the disk is full"]);
    assert!(again.is_ok_and(|status| status.success()) && unmounted.is_ok_and(|status| status.success()));
    roomy.ok();
    assert!(leftovers.iter().all(|path| !path.to_string_lossy().contains("staging")), "{leftovers:?}");
}
