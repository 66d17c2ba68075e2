//! Archives, unpacked so that nothing leaves the folder.
//!
//! Refused by name: absolute paths, `..`, links, devices, a name that comes twice. Nothing but plain files and folders is
//! ever made, so no member can write through a link that another one made. Counted are the bytes that come out, not those
//! that the archive claims, so a bomb ends at the limit.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Component, Path, PathBuf};

use artifact::{Doing, RunContext, StageError};
use flate2::bufread::MultiGzDecoder;

/// How much may come out of one archive.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Files.
    pub files: u64,
    /// Bytes of all files together.
    pub bytes: u64,
}

/// What an archive is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `.tar`
    Tar,
    /// `.tar.gz`, `.tgz`
    TarGz,
    /// `.zip`
    Zip,
}

/// The endings that are archives.
const ENDINGS: [(&str, Format); 4] = [(".tar.gz", Format::TarGz), (".tgz", Format::TarGz), (".tar", Format::Tar), (".zip", Format::Zip)];

impl Format {
    /// The format that a file's name says, and the name without its ending; none for other files.
    pub fn of(name: &str) -> Option<(Self, &str)> {
        let ending = |(ending, format): (&str, Self)| {
            let stem = name.len().checked_sub(ending.len()).filter(|stem| name.is_char_boundary(*stem))?;
            name[stem..].eq_ignore_ascii_case(ending).then_some((format, &name[..stem]))
        };
        ENDINGS.into_iter().find_map(ending)
    }
}

/// Unpacks `archive` into `folder`; the number of files.
///
/// # Errors
/// What is refused, too much, or damaged: with the archive's name and the member's.
pub fn unpack(archive: &Path, format: Format, folder: &Path, limits: Limits, context: &RunContext) -> Result<u64, StageError> {
    let name = archive.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut unpacking = Unpacking { archive: &name, folder, limits, context, seen: BTreeSet::new(), folders: BTreeSet::new(), bytes: 0 };
    let file = File::open(archive).doing(|| format!("opening the archive {}", archive.display()))?;
    let progress = context.progress(format!("unpacking {name}"), None, "files");
    let reader = BufReader::with_capacity(1 << 18, file);
    match format {
        Format::Tar => unpacking.tar(reader, &progress)?,
        Format::TarGz => unpacking.tar(BufReader::with_capacity(1 << 18, MultiGzDecoder::new(reader)), &progress)?,
        Format::Zip => unpacking.zip(reader, &progress)?,
    }
    Ok(unpacking.seen.len() as u64)
}

struct Unpacking<'a> {
    archive: &'a str,
    folder: &'a Path,
    limits: Limits,
    context: &'a RunContext<'a>,
    /// Files made so far.
    seen: BTreeSet<PathBuf>,
    /// Folders made so far.
    folders: BTreeSet<PathBuf>,
    bytes: u64,
}

impl Unpacking<'_> {
    fn tar(&mut self, reader: impl Read, progress: &artifact::stage::Progress<'_>) -> Result<(), StageError> {
        let mut archive = tar::Archive::new(reader);
        let mut last = "its beginning".to_owned();
        for entry in archive.entries().map_err(|error| self.damaged(&last, &error))? {
            let mut entry = entry.map_err(|error| self.damaged(&last, &error))?;
            let path = entry.path().map_err(|error| self.damaged(&last, &error))?.into_owned();
            last = path.display().to_string();
            match entry.header().entry_type() {
                tar::EntryType::Directory => drop(self.safe(&path)?),
                tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                    self.file(&path, &mut entry)?;
                    progress.add(1);
                }
                // Comments of the whole archive.
                tar::EntryType::XGlobalHeader => {}
                tar::EntryType::Symlink | tar::EntryType::Link => return Err(self.refused(&last, "is a link")),
                _ => return Err(self.refused(&last, "is neither a file nor a folder")),
            }
        }
        Ok(())
    }

    fn zip(&mut self, reader: impl Read + std::io::Seek, progress: &artifact::stage::Progress<'_>) -> Result<(), StageError> {
        let mut archive = zip::ZipArchive::new(reader).map_err(|error| self.damaged("its directory", &error))?;
        for index in 0..archive.len() {
            let mut entry = archive.by_index(index).map_err(|error| self.damaged(&format!("member {index}"), &error))?;
            let name = entry.name().to_owned();
            if entry.is_symlink() {
                return Err(self.refused(&name, "is a link"));
            }
            // Archives made on Windows may separate with backslashes.
            let path = PathBuf::from(name.replace('\\', "/"));
            if entry.is_dir() {
                self.safe(&path)?;
            } else {
                self.file(&path, &mut entry)?;
                progress.add(1);
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, from: &mut impl Read) -> Result<(), StageError> {
        self.context.check_stop()?;
        let shown = path.display().to_string();
        let relative = self.safe(path)?;
        if self.seen.len() as u64 >= self.limits.files {
            return Err(self.too_much(format!("more than {} files", self.limits.files), "max_files"));
        }
        if relative.as_os_str().is_empty() || !self.seen.insert(relative.clone()) {
            return Err(self.refused(&shown, "comes twice"));
        }
        let target = self.folder.join(&relative);
        let parent = target.parent().unwrap_or(self.folder).to_owned();
        let writing = || format!("unpacking {shown} from {}", self.archive);
        if !self.folders.contains(&parent) {
            fs::create_dir_all(&parent).doing(writing)?;
            self.folders.insert(parent);
        }
        let mut file = BufWriter::new(File::create_new(&target).doing(writing)?);
        let mut buffer = [0u8; 1 << 15];
        loop {
            let read = from.read(&mut buffer).map_err(|error| self.damaged(&shown, &error))?;
            if read == 0 {
                break;
            }
            self.bytes += read as u64;
            if self.bytes > self.limits.bytes {
                return Err(self.too_much(format!("more than {} bytes", self.limits.bytes), "max_bytes"));
            }
            file.write_all(&buffer[..read]).doing(writing)?;
        }
        file.flush().doing(writing)
    }

    /// The member's path, if it stays within the folder.
    fn safe(&self, path: &Path) -> Result<PathBuf, StageError> {
        let mut relative = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => relative.push(name),
                Component::CurDir => {}
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(self.refused(&path.display().to_string(), "wants out of its folder"));
                }
            }
        }
        Ok(relative)
    }

    fn refused(&self, member: &str, why: &str) -> StageError {
        StageError::new(format!("the archive's member `{member}` {why}: nothing of it is kept"))
            .at(self.archive)
            .help("archives hold plain files and folders only; unpack and look through this one by hand if you trust where it comes from")
    }

    fn damaged(&self, member: &str, error: &(dyn std::error::Error + '_)) -> StageError {
        StageError::new(format!("the archive is damaged or cut short at `{member}`")).at(self.archive).because(error).help("fetch it again")
    }

    fn too_much(&self, what: String, key: &str) -> StageError {
        StageError::new(format!("the archive unpacks to {what}")).at(self.archive).help(format!("raise `{key}` if this is right"))
    }
}
