//! Decoded images into a dataset of one shape: what is corrupt, what is odd, and who said so first.

use std::path::{Path, PathBuf};

use artifact::{RunContext, StageError};
use dataset::{DATA_FILE, ImageShape, ImageWriter, Split};

use crate::decode::{Picture, Undecodable};
use crate::image_folder::OnCorrupt;

/// How much decoded pixels may wait in memory for the writer.
const WAITING_BYTES: usize = 64 << 20;
/// Images decoded at once when they are small.
const CHUNK_ROWS: usize = 1024;

/// Writes images in their order. The first that can be decoded sets the shape; until then, corrupt ones wait.
pub(crate) struct PictureWriter {
    path: PathBuf,
    on_corrupt: OnCorrupt,
    writer: Option<(ImageWriter, ImageShape, String)>,
    early: Vec<(String, Option<String>, Option<Split>)>,
    rows: usize,
    corrupt: usize,
    first_corrupt: Option<String>,
    with_alpha: usize,
    greys: usize,
}

impl PictureWriter {
    pub(crate) fn new(output: &Path, on_corrupt: OnCorrupt) -> Self {
        Self {
            path: output.join(DATA_FILE),
            on_corrupt,
            writer: None,
            early: Vec::new(),
            rows: 0,
            corrupt: 0,
            first_corrupt: None,
            with_alpha: 0,
            greys: 0,
        }
    }

    /// How many images to decode before they are pushed: few until their size is known, then as many as memory allows.
    pub(crate) fn chunk_rows(&self) -> usize {
        let threads = rayon::current_num_threads();
        match &self.writer {
            None => threads,
            Some((_, shape, _)) => (WAITING_BYTES / shape.bytes().max(1)).clamp(threads, CHUNK_ROWS),
        }
    }

    /// Adds the next row.
    pub(crate) fn push(
        &mut self,
        id: &str,
        label: Option<&str>,
        split: Option<Split>,
        picture: Result<Picture, Undecodable>,
    ) -> Result<(), StageError> {
        self.rows += 1;
        let picture = match picture {
            Ok(picture) => self.conform(id, picture)?,
            Err(why) => return self.push_corrupt(id, label, split, &why),
        };
        match &mut self.writer {
            Some((writer, ..)) => writer.push(id, label, split, Some(&picture.pixels)),
            None => Ok(()),
        }
    }

    fn push_corrupt(&mut self, id: &str, label: Option<&str>, split: Option<Split>, why: &Undecodable) -> Result<(), StageError> {
        if self.on_corrupt == OnCorrupt::Fail {
            return Err(StageError::new(format!("this image cannot be decoded: {why}")).at(id).help(
                "replace it or take it away; on_corrupt = \"null\" keeps such rows without pixels, and process.images counts and drops them",
            ));
        }
        self.corrupt += 1;
        self.first_corrupt.get_or_insert_with(|| format!("{id}: {why}"));
        match &mut self.writer {
            Some((writer, ..)) => writer.push(id, label, split, None),
            None => {
                self.early.push((id.to_owned(), label.map(str::to_owned), split));
                Ok(())
            }
        }
    }

    /// The picture in the dataset's shape, which the first one sets.
    fn conform(&mut self, id: &str, picture: Picture) -> Result<Picture, StageError> {
        self.with_alpha += usize::from(picture.had_alpha);
        let Some((_, shape, first)) = &self.writer else {
            let mut writer = ImageWriter::create(&self.path, picture.shape)?;
            for (id, label, split) in self.early.drain(..) {
                writer.push(&id, label.as_deref(), split, None)?;
            }
            self.writer = Some((writer, picture.shape, id.to_owned()));
            return Ok(picture);
        };
        let found = picture.shape;
        let picture = picture.with_channels(shape.channels);
        self.greys += usize::from(picture.shape.channels != found.channels);
        if picture.shape == *shape {
            return Ok(picture);
        }
        let help = match picture.shape.channels == shape.channels {
            true => "resize all to one size with size = [height, width], or take the odd ones away".to_owned(),
            false => "say what all shall be: channels = 3 makes grey images coloured, channels = 1 makes coloured images grey".to_owned(),
        };
        Err(StageError::new(format!("this image is {found} (height × width × channels), and {first} before it is {shape}"))
            .at(id)
            .help(help))
    }

    /// Writes what is left, and says what was out of the ordinary.
    pub(crate) fn finish(self, context: &RunContext) -> Result<(), StageError> {
        let Some((writer, ..)) = self.writer else {
            let first = self.first_corrupt.unwrap_or_default();
            return Err(StageError::new(format!("none of the {} images can be decoded; the first is {first}", self.rows)));
        };
        if let Some(first) = &self.first_corrupt {
            let (corrupt, rows) = (self.corrupt, self.rows);
            context.warn(format!("{corrupt} of {rows} images cannot be decoded and are kept without pixels; the first is {first}"));
        }
        if self.greys > 0 {
            context.info(format!("{} of {} images are grey and were made coloured, as the others are", self.greys, self.rows));
        }
        if self.with_alpha > 0 {
            context.info(format!("{} of {} images have transparency, which is dropped", self.with_alpha, self.rows));
        }
        writer.finish().map(|_| ())
    }
}
