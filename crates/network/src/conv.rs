//! Convolution with bias, activation and, where one follows, maximum pooling: one operation.
//!
//! Images are `[height, width, channels]`, weights `[rows, columns, channels, filters]`; seen as matrices, a patch is a row
//! of `rows * columns * channels` values and the weights are `[patch, filters]`. [`Conv::forward`] and [`Conv::backward`]
//! work on a few images on one thread; [`Conv::forward_path`] and [`Conv::backward_path`] choose how. A new kernel is a new [`ForwardPath`] or
//! [`BackwardPath`], chosen there for the shapes it is made for.

mod bf16;
mod depthwise;
mod direct;
mod patches;
pub(crate) mod pooling;
pub(crate) mod sparse;
mod tile;
mod winograd;

use std::{fmt, mem, ops::Range};

use rayon::prelude::*;

use crate::{
    amx::Unit,
    architecture::{same_padding, windows},
    examples::View,
    layer::{Activation, Axes, Convolution, Padding},
    matmul::{Matrix, multiply_into},
    partition::CHUNK,
    recycle::Floats,
    scratch::{self, Aligned, Scratch, sized},
    simd::add_rows,
};

/// Patches and products of one tile may take this many bytes, so that they stay in the second-level cache beside the
/// weights.
const TILE_BYTES: usize = 256 * 1024;

/// How the outputs are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForwardPath {
    /// Sums stay in registers until they are pooled and activated; nothing is copied.
    Direct,
    /// As [`ForwardPath::Direct`], with a third of the products.
    Winograd,
    /// The same for a stride of two, with two thirds of the products.
    WinogradWithStrides,
    /// The same for kernels of five columns, with six tenths of the products.
    WinogradInRows,
    /// Products of bf16 factors on the processor's matrix tiles; nothing is copied but to round it.
    Tiles(Unit),
    /// One filter a channel: loops over the channels, where the image lies.
    Depthwise,
    /// Patches are copied to rows of a matrix a tile at a time, multiplied with the weights, then pooled and activated.
    PatchesTimesWeights,
}

/// How the gradients are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackwardPath {
    /// As [`ForwardPath::Direct`], for a gradient that is dense: nothing is copied, and the input's gradient is a convolution too.
    Direct,
    /// As [`ForwardPath::Winograd`], for a gradient that is dense.
    Winograd,
    /// As [`ForwardPath::Tiles`], pooled or not.
    Tiles(Unit),
    /// As [`ForwardPath::Depthwise`].
    Depthwise,
    /// Two matrix products with the patches, for a gradient that is dense.
    MatrixProducts,
    /// For a pooled layer, whose gradient has at most one non-zero a window: each adds its patch to its filter's weight
    /// gradient and its filter to its patch's input gradient.
    NonZeros,
}

impl fmt::Display for ForwardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ForwardPath::Direct => "direct",
            ForwardPath::Winograd => "Winograd",
            ForwardPath::WinogradWithStrides => "Winograd with strides",
            ForwardPath::WinogradInRows => "Winograd in rows",
            ForwardPath::Tiles(_) => "bf16 tiles",
            ForwardPath::Depthwise => "depthwise",
            ForwardPath::PatchesTimesWeights => "patches × weights",
        })
    }
}

impl fmt::Display for BackwardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackwardPath::Direct => "direct",
            BackwardPath::Winograd => "Winograd",
            BackwardPath::Tiles(_) => "bf16 tiles",
            BackwardPath::Depthwise => "depthwise",
            BackwardPath::MatrixProducts => "matrix products",
            BackwardPath::NonZeros => "non-zeros only",
        })
    }
}

/// The geometry of one convolution block.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conv {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) stride: usize,
    /// Step between the points of a window; 1 where they are neighbours.
    pub(crate) dilation: usize,
    /// Groups that channels and filters fall into.
    pub(crate) groups: usize,
    /// Rows of zeros above and columns of zeros left of the image.
    pub(crate) top: usize,
    pub(crate) left: usize,
    /// The image with its zeros.
    pub(crate) padded_height: usize,
    pub(crate) padded_width: usize,
    pub(crate) filters: usize,
    pub(crate) activation: Activation,
    /// Side and stride of the pooling window; 1 where nothing is pooled.
    pub(crate) pool: usize,
    /// Height and width of the output (after pooling). Rows and columns that no window takes in are never computed.
    pub(crate) out_height: usize,
    pub(crate) out_width: usize,
    /// What multiplies bf16 factors, where it is not fp32 that is asked for.
    pub(crate) unit: Option<Unit>,
}

/// What the backward pass reads besides the gradient, for some images.
pub(crate) struct Kept<'a> {
    pub(crate) input: View<'a>,
    /// The outputs.
    pub(crate) output: &'a [f32],
    /// Values before the activation, where it [needs them](Activation::needs_input); else empty.
    pub(crate) before: &'a [f32],
    /// The place of each maximum in its window; empty where nothing is pooled.
    pub(crate) winners: &'a [u8],
}

/// Where the forward pass writes, for some images; `before` and `winners` as [`Kept`] has them, or empty at inference.
pub(crate) struct Results<'a> {
    pub(crate) output: &'a mut [f32],
    pub(crate) before: &'a mut [f32],
    pub(crate) winners: &'a mut [u8],
}

impl Results<'_> {
    fn part(&mut self, outputs: Range<usize>) -> Results<'_> {
        fn of<T>(all: &mut [T], outputs: Range<usize>) -> &mut [T] {
            if all.is_empty() { all } else { &mut all[outputs] }
        }
        Results { before: of(self.before, outputs.clone()), winners: of(self.winners, outputs.clone()), output: of(self.output, outputs) }
    }
}

/// A layer's weights as the forward pass reads them.
#[derive(Clone, Copy)]
pub(crate) struct Weighted<'a> {
    /// `[patch, filters]`.
    pub(crate) weights: &'a [f32],
    /// [`Conv::prepared_weights`].
    pub(crate) prepared: &'a [f32],
    pub(crate) bias: &'a [f32],
}

/// The weights in the orders that the backward pass reads.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    /// `[patch, filters]`.
    pub(crate) by_patch: &'a [f32],
    /// [`Conv::reordered_weights`], where an input gradient is asked for; else empty.
    pub(crate) reordered: &'a [f32],
}

/// Where the backward pass adds, for some images.
pub(crate) struct Sums<'a> {
    pub(crate) partial: &'a mut Partial,
    /// The gradient of the input, which is overwritten; `None` where nobody needs it.
    pub(crate) input: Option<&'a mut [f32]>,
}

/// Gradients of the weights and bias, summed over some images.
pub(crate) struct Partial {
    /// In the order that [`Conv::gradient_is_by_filter`] tells.
    pub(crate) weights: Floats,
    pub(crate) bias: Vec<f32>,
}

/// A part of a group of images that is computed at once: whole images, or some rows of one.
#[derive(Clone, Copy)]
struct Tile {
    image: usize,
    images: usize,
    /// First row before pooling, and how many.
    row: usize,
    rows: usize,
}

impl Conv {
    /// A plain one: windows of neighbours, each filter sees all channels.
    pub(crate) fn new(
        image: (usize, usize, usize),
        filters: usize,
        kernel: (usize, usize),
        stride: usize,
        padding: Padding,
        activation: Activation,
        pool: usize,
    ) -> Self {
        let filters = Some(filters);
        let spec = Convolution { axes: Axes::Image, filters, kernel, stride, dilation: 1, groups: 1, padding, dirac: false, activation };
        Conv::of(image, &spec, pool)
    }

    /// `pool` is the side of the window that follows, or 1. The caller has checked that all of it fits.
    pub(crate) fn of((height, width, channels): (usize, usize, usize), spec: &Convolution, pool: usize) -> Self {
        let Convolution { kernel: (rows, columns), stride, dilation, activation, .. } = *spec;
        let (filters, groups) = spec.of_channels(channels);
        let extent = spec.extent();
        let ((top, bottom), (left, right)) = match spec.padding {
            Padding::Valid => ((0, 0), (0, 0)),
            Padding::Same => (same_padding(height, extent.0, stride), same_padding(width, extent.1, stride)),
            Padding::Causal => ((0, 0), (extent.1 - 1, 0)),
        };
        let (padded_height, padded_width) = (height + top + bottom, width + left + right);
        let out_height = windows(padded_height, extent.0, stride).unwrap_or(0) / pool;
        let out_width = windows(padded_width, extent.1, stride).unwrap_or(0) / pool;
        Conv {
            height,
            width,
            channels,
            rows,
            columns,
            stride,
            dilation,
            groups,
            top,
            left,
            padded_height,
            padded_width,
            filters,
            activation,
            pool,
            out_height,
            out_width,
            unit: None,
        }
    }

    /// Values of one example that goes in.
    pub(crate) fn input_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Values of one example that comes out.
    pub(crate) fn output_len(&self) -> usize {
        self.out_height * self.out_width * self.filters
    }

    /// Values of one patch of one group: products of one output.
    pub(crate) fn patch(&self) -> usize {
        self.rows * self.columns * self.channels / self.groups
    }

    /// Values of the patches of all groups at one place.
    fn patches(&self) -> usize {
        self.patch() * self.groups
    }

    pub(crate) fn weights_len(&self) -> usize {
        self.patch() * self.filters
    }

    /// Rows of patches lie this far apart: at whole vectors.
    fn pitch(&self) -> usize {
        self.patches().next_multiple_of(16)
    }

    fn padded_len(&self) -> usize {
        self.padded_height * self.padded_width * self.channels
    }

    fn is_padded(&self) -> bool {
        self.padded_height != self.height || self.padded_width != self.width
    }

    /// Rows and columns of outputs before pooling, as far as windows take them in.
    fn computed(&self) -> (usize, usize) {
        (self.out_height * self.pool, self.out_width * self.pool)
    }

    pub(crate) fn forward_path(&self) -> ForwardPath {
        let (_, width) = self.computed();
        if let Some(unit) = self.unit
            && self.fits_tiles()
        {
            return ForwardPath::Tiles(unit);
        }
        match () {
            () if self.groups > 1 && self.groups == self.channels && self.groups == self.filters => ForwardPath::Depthwise,
            () if self.groups > 1 || self.dilation > 1 => ForwardPath::PatchesTimesWeights,
            () if self.is_minimal() => ForwardPath::Winograd,
            () if self.is_minimal_with_strides() => ForwardPath::WinogradWithStrides,
            () if self.is_minimal_in_rows() => ForwardPath::WinogradInRows,
            // Narrow outputs leave registers empty; the matrix product takes several images at once.
            () if self.pool <= 2 && width > 2 => ForwardPath::Direct,
            () => ForwardPath::PatchesTimesWeights,
        }
    }

    pub(crate) fn backward_path(&self) -> BackwardPath {
        match self.forward_path() {
            ForwardPath::Tiles(unit) => BackwardPath::Tiles(unit),
            _ if self.pool > 1 => BackwardPath::NonZeros,
            ForwardPath::Direct | ForwardPath::WinogradWithStrides | ForwardPath::WinogradInRows => BackwardPath::Direct,
            ForwardPath::Winograd => BackwardPath::Winograd,
            ForwardPath::Depthwise => BackwardPath::Depthwise,
            ForwardPath::PatchesTimesWeights => BackwardPath::MatrixProducts,
        }
    }

    /// The weights in the order that the path to the input's gradient reads, if it is another one.
    pub(crate) fn reordered_weights(&self, weights: &[f32]) -> Aligned {
        match self.backward_path() {
            BackwardPath::NonZeros => sparse::reordered_weights(self, weights),
            BackwardPath::Tiles(_) => self.filter_pairs(weights),
            _ if self.input_is_convolution() => {
                let turned = self.turned_weights(weights);
                if self.turned().is_minimal() {
                    self.turned().minimal_weights(turned.values())
                } else {
                    self.turned().packed_weights(turned.values())
                }
            }
            _ => Aligned::default(),
        }
    }

    /// The weights in the order that the forward pass reads, if it is another one.
    pub(crate) fn prepared_weights(&self, weights: &[f32]) -> Aligned {
        match self.forward_path() {
            ForwardPath::Winograd => self.minimal_weights(weights),
            ForwardPath::WinogradWithStrides => self.minimal_weights_with_strides(weights),
            ForwardPath::WinogradInRows => self.minimal_weights_in_rows(weights),
            ForwardPath::Tiles(_) => self.channel_pairs(weights),
            ForwardPath::Direct => self.packed_weights(weights),
            ForwardPath::Depthwise | ForwardPath::PatchesTimesWeights => Aligned::default(),
        }
    }

    /// Whether [`Partial::weights`] is in the order of [`sparse`] in place of `[patch, filters]`.
    pub(crate) fn gradient_is_by_filter(&self) -> bool {
        self.backward_path() == BackwardPath::NonZeros
    }

    /// Values of [`Partial::weights`].
    pub(crate) fn partial_len(&self) -> usize {
        if self.gradient_is_by_filter() { sparse::partial_len(self) } else { self.weights_len() }
    }

    pub(crate) fn empty_partial(&self) -> Partial {
        Partial { weights: Floats::zeros(self.partial_len()), bias: vec![0.0; self.filters] }
    }

    /// How many whole images fit a tile (at most a chunk), or how many rows of one.
    fn tile_size(&self) -> (usize, usize) {
        let (height, width) = self.computed();
        let row = width * (self.pitch() + self.filters) * size_of::<f32>();
        let whole = TILE_BYTES / (row * height).max(1);
        match whole {
            0 => (1, (TILE_BYTES / row.max(1) / self.pool * self.pool).clamp(self.pool, height)),
            images => (images.min(CHUNK), height),
        }
    }

    fn tiles(&self, images: usize) -> impl Iterator<Item = Tile> + use<> {
        let (height, _) = self.computed();
        let (tile_images, tile_rows) = self.tile_size();
        (0..images).step_by(tile_images).flat_map(move |image| {
            (0..height).step_by(tile_rows).map(move |row| Tile {
                image,
                images: tile_images.min(images - image),
                row,
                rows: tile_rows.min(height - row),
            })
        })
    }

    /// The images of a tile as numbers with their border: borrowed where they are that already.
    fn staged<'a>(&self, input: View<'a>, tile: Tile, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        let len = self.input_len();
        let range = tile.image * len..(tile.image + tile.images) * len;
        match input.range(range) {
            View::Floats(values) if !self.is_padded() => values,
            _ if tile.row > 0 => sized(buffer, tile.images * self.padded_len()),
            view => {
                let buffer = sized(buffer, tile.images * self.padded_len());
                self.write_padded(view, tile.images, buffer);
                buffer
            }
        }
    }

    fn write_padded(&self, view: View<'_>, images: usize, buffer: &mut [f32]) {
        if !self.is_padded() {
            return view.write(self.channels, buffer);
        }
        let line = self.width * self.channels;
        let mut done = 0;
        for index in 0..images * self.height {
            let (image, y) = (index / self.height, index % self.height);
            let start = image * self.padded_len() + ((y + self.top) * self.padded_width + self.left) * self.channels;
            buffer[done..start].fill(0.0);
            done = start + line;
            view.range(index * line..(index + 1) * line).write(self.channels, &mut buffer[start..done]);
        }
        buffer[done..].fill(0.0);
    }

    /// Outputs of some images.
    ///
    /// What comes out for an image does not depend on the images beside it: the matrix product always has the size of a
    /// full tile.
    pub(crate) fn forward(&self, layer: &Weighted<'_>, input: View<'_>, results: &mut Results<'_>, scratch: &mut Scratch) {
        match self.forward_path() {
            ForwardPath::Direct => self.forward_directly(layer, input, results, scratch),
            ForwardPath::Winograd | ForwardPath::WinogradWithStrides | ForwardPath::WinogradInRows => {
                self.forward_minimally(layer, input, 0..self.grid().0, results, scratch);
            }
            ForwardPath::Tiles(unit) => {
                let mut image = mem::take(&mut scratch.image);
                bf16::forward(self, unit, layer.prepared, layer.bias, self.as_floats(input, &mut image), results, scratch);
                scratch.image = image;
            }
            ForwardPath::Depthwise => self.forward_by_channel(layer, input, 0..self.out_height, results, scratch),
            ForwardPath::PatchesTimesWeights => self.forward_products(layer.weights, layer.bias, input, results, scratch),
        }
    }

    /// The same, of these rows of windows.
    fn forward_minimally(
        &self,
        layer: &Weighted<'_>,
        input: View<'_>,
        rows: Range<usize>,
        results: &mut Results<'_>,
        scratch: &mut Scratch,
    ) {
        let mut image = mem::take(&mut scratch.image);
        let images = self.as_floats(input, &mut image);
        let forward = match self.forward_path() {
            ForwardPath::WinogradWithStrides => winograd::strided::forward,
            ForwardPath::WinogradInRows => winograd::five::forward,
            _ => winograd::forward,
        };
        forward(self, layer.prepared, layer.bias, images, rows, results, scratch);
        scratch.image = image;
        self.activate(results);
    }

    /// The same, of these rows of outputs, where each channel has a filter of its own.
    fn forward_by_channel(
        &self,
        layer: &Weighted<'_>,
        input: View<'_>,
        rows: Range<usize>,
        results: &mut Results<'_>,
        scratch: &mut Scratch,
    ) {
        let images = self.as_floats(input, &mut scratch.image);
        depthwise::forward(self, layer.weights, layer.bias, images, rows, results.output);
        self.activate(results);
    }

    /// The images as numbers: borrowed where they are that already.
    fn as_floats<'a>(&self, input: View<'a>, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        match input {
            View::Floats(values) => values,
            View::Pixels { bytes, .. } => {
                let buffer = sized(buffer, bytes.len());
                input.write(self.channels, buffer);
                buffer
            }
        }
    }

    fn forward_directly(&self, layer: &Weighted<'_>, input: View<'_>, results: &mut Results<'_>, scratch: &mut Scratch) {
        let len = self.output_len();
        let count = results.output.len() / len;
        for tile in self.whole_images(count, CHUNK) {
            let staged = self.staged(input, tile, &mut scratch.image);
            let mut results = results.part(tile.image * len..(tile.image + tile.images) * len);
            self.forward_image(layer, staged, &mut results);
        }
    }

    /// Outputs of images that have their borders, directly.
    pub(crate) fn forward_image(&self, layer: &Weighted<'_>, staged: &[f32], results: &mut Results<'_>) {
        direct::forward(self, layer.prepared, layer.bias, staged, results);
        self.activate(results);
    }

    /// Applies an activation that is left to do.
    fn activate(&self, results: &mut Results<'_>) {
        if self.activation.needs_input() {
            if !results.before.is_empty() {
                results.before.copy_from_slice(results.output);
            }
            self.activation.apply(results.output);
        }
    }

    /// Outputs of one image on all threads, some rows each, where the path allows.
    pub(crate) fn forward_in_bands(&self, layer: &Weighted<'_>, input: View<'_>, output: &mut [f32], scratch: &mut Scratch) {
        let threads = rayon::current_num_threads();
        match self.forward_path() {
            ForwardPath::Winograd | ForwardPath::WinogradWithStrides | ForwardPath::WinogradInRows if threads > 1 => {
                self.bands_of_windows(threads, layer, input, output)
            }
            ForwardPath::Direct if threads > 1 => self.bands_of_rows(threads, layer, input, output, scratch),
            ForwardPath::Depthwise if threads > 1 => self.bands_of_lines(threads, layer, input, output),
            _ => self.forward(layer, input, &mut Results { output, before: &mut [], winners: &mut [] }, scratch),
        }
    }

    fn bands_of_windows(&self, threads: usize, layer: &Weighted<'_>, input: View<'_>, output: &mut [f32]) {
        let all = self.grid().0;
        let rows = all.div_ceil(threads);
        let size = rows * 2 / self.pool * self.out_width * self.filters;
        output.par_chunks_mut(size).enumerate().for_each(|(index, output)| {
            let range = index * rows..all.min((index + 1) * rows);
            let mut results = Results { output, before: &mut [], winners: &mut [] };
            scratch::with(|scratch| self.forward_minimally(layer, input, range, &mut results, scratch));
        });
    }

    fn bands_of_rows(&self, threads: usize, layer: &Weighted<'_>, input: View<'_>, output: &mut [f32], scratch: &mut Scratch) {
        let bands = threads.min(self.out_height);
        let staged = self.staged(input, Tile { image: 0, images: 1, row: 0, rows: self.computed().0 }, &mut scratch.image);
        let rows = self.out_height.div_ceil(bands);
        let step = self.pool * self.stride * self.padded_width * self.channels;
        output.par_chunks_mut(rows * self.out_width * self.filters).enumerate().for_each(|(index, output)| {
            let band = self.band(output.len() / (self.out_width * self.filters));
            let staged = &staged[index * rows * step..][..band.padded_len()];
            band.forward_image(layer, staged, &mut Results { output, before: &mut [], winners: &mut [] });
        });
    }

    fn bands_of_lines(&self, threads: usize, layer: &Weighted<'_>, input: View<'_>, output: &mut [f32]) {
        let rows = self.out_height.div_ceil(threads);
        output.par_chunks_mut(rows * self.out_width * self.filters).enumerate().for_each(|(index, output)| {
            let range = index * rows..self.out_height.min((index + 1) * rows);
            let mut results = Results { output, before: &mut [], winners: &mut [] };
            scratch::with(|scratch| self.forward_by_channel(layer, input, range, &mut results, scratch));
        });
    }

    /// The same for `rows` rows of outputs.
    fn band(&self, rows: usize) -> Conv {
        Conv { out_height: rows, padded_height: (rows * self.pool - 1) * self.stride + self.rows, ..self.clone() }
    }

    /// As many images at once as the second-level cache holds with their borders, and no more than `most`; their weights pass through
    /// it once.
    fn whole_images(&self, count: usize, most: usize) -> impl Iterator<Item = Tile> + use<> {
        let most = (TILE_BYTES / (self.padded_len() * size_of::<f32>())).clamp(1, most);
        let rows = self.computed().0;
        (0..count).step_by(most).map(move |image| Tile { image, images: most.min(count - image), row: 0, rows })
    }

    fn forward_products(&self, weights: &[f32], bias: &[f32], input: View<'_>, results: &mut Results<'_>, scratch: &mut Scratch) {
        let images = results.output.len() / self.output_len();
        let (height, width) = self.computed();
        let (tile_images, tile_rows) = self.tile_size();
        let (patch, pitch, filters) = (self.patch(), self.pitch(), self.filters);
        let Scratch { image, columns, product, .. } = scratch;
        for tile in self.tiles(images) {
            let full_rows = if tile_rows == height { tile_images * height * width } else { tile.rows * width };
            let columns = sized(columns, full_rows * pitch);
            let product = sized(product, full_rows * filters);
            let staged = self.staged(input, tile, image);
            self.gather(staged, tile, columns);
            for (at, filter) in self.group_starts() {
                let columns = Matrix::rows(&columns[at..], full_rows, patch, pitch);
                let weights = Matrix::rows(&weights[filter..], patch, filters / self.groups, filters);
                multiply_into(&mut product[filter..], filters, columns, weights, false);
            }
            self.finish(tile, product, bias, results);
        }
    }

    /// Of each group, where its patch begins among the patches of one place, and its first filter.
    fn group_starts(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (patch, filters) = (self.patch(), self.filters / self.groups);
        (0..self.groups).map(move |group| (group * patch, group * filters))
    }

    /// Writes the patches of a tile as rows of [`Conv::pitch`] values.
    fn gather(&self, staged: &[f32], tile: Tile, columns: &mut [f32]) {
        let (_, width) = self.computed();
        let per_image = tile.rows * width * self.pitch();
        for image in 0..tile.images {
            let staged = &staged[image * self.padded_len()..][..self.padded_len()];
            patches::gather(self, staged, tile.row, tile.rows, &mut columns[image * per_image..][..per_image]);
        }
    }

    /// Bias, pooling and activation of a tile's products.
    fn finish(&self, tile: Tile, product: &mut [f32], bias: &[f32], results: &mut Results<'_>) {
        let Results { output, before, winners } = results;
        let (_, width) = self.computed();
        let line = self.out_width * self.filters;
        let start = tile.image * self.output_len() + tile.row / self.pool * line;
        let range = start..start + tile.images * (tile.rows / self.pool) * line;
        if self.pool == 1 {
            let product = &mut product[..range.len()];
            pooling::add_bias(product, bias);
            if !before.is_empty() {
                before[range.clone()].copy_from_slice(product);
            }
            self.activation.apply(product);
            output[range].copy_from_slice(product);
            return;
        }
        let lines = tile.images * tile.rows / self.pool;
        let winners = if winners.is_empty() { &mut [][..] } else { &mut winners[range.clone()] };
        let output = &mut output[range];
        pooling::pool_lines(product, lines, width, self.out_width, self.filters, self.pool, output, winners);
        pooling::add_bias(output, bias);
        self.activation.apply(output);
    }

    /// Adds the gradients of some images to `sums`. `gradient` is the loss's gradient with respect to the outputs; it is
    /// overwritten.
    pub(crate) fn backward(&self, weights: Weights<'_>, kept: &Kept<'_>, gradient: &mut [f32], sums: &mut Sums<'_>, scratch: &mut Scratch) {
        match self.backward_path() {
            path @ (BackwardPath::Direct | BackwardPath::Winograd | BackwardPath::Depthwise | BackwardPath::MatrixProducts) => {
                let reference = if self.activation.needs_input() { kept.before } else { kept.output };
                self.activation.backward(reference, gradient);
                add_rows(gradient, &mut sums.partial.bias);
                match path {
                    BackwardPath::Direct => self.weights_directly(kept.input, gradient, sums, scratch),
                    BackwardPath::Winograd => self.weights_minimally(kept.input, gradient, sums, scratch),
                    BackwardPath::Depthwise => {
                        let images = self.as_floats(kept.input, &mut scratch.image);
                        depthwise::add_weights_gradient(self, images, gradient, &mut sums.partial.weights);
                    }
                    _ => self.weights_by_products(kept.input, gradient, sums, scratch),
                }
                match sums.input.as_deref_mut() {
                    Some(out) if path == BackwardPath::Depthwise => {
                        out.fill(0.0);
                        depthwise::add_input_gradient(self, weights.by_patch, gradient, out);
                    }
                    Some(out) if self.input_is_convolution() => self.input_by_convolution(weights.reordered, gradient, out, scratch),
                    Some(out) => self.input_by_products(weights.by_patch, gradient, out, scratch),
                    None => {}
                }
            }
            BackwardPath::NonZeros => {
                if self.activation == Activation::Relu {
                    self.activation.backward(kept.output, gradient);
                }
                sparse::backward(self, weights.reordered, kept, gradient, sums, scratch);
            }
            BackwardPath::Tiles(unit) => bf16::backward(self, unit, weights.reordered, kept, gradient, sums, scratch),
        }
    }

    /// Whether the input's gradient is computed as a convolution.
    fn input_is_convolution(&self) -> bool {
        matches!(self.backward_path(), BackwardPath::Direct | BackwardPath::Winograd) && self.stride == 1
    }

    fn weights_directly(&self, input: View<'_>, gradient: &[f32], sums: &mut Sums<'_>, scratch: &mut Scratch) {
        let len = self.output_len();
        for tile in self.whole_images(gradient.len() / len, CHUNK) {
            let staged = self.staged(input, tile, &mut scratch.image);
            let gradient = &gradient[tile.image * len..(tile.image + tile.images) * len];
            direct::add_weights_gradient(self, staged, gradient, &mut sums.partial.weights);
        }
    }

    fn weights_minimally(&self, input: View<'_>, gradient: &[f32], sums: &mut Sums<'_>, scratch: &mut Scratch) {
        let mut image = mem::take(&mut scratch.image);
        let images = self.as_floats(input, &mut image);
        winograd::add_weights_gradient(self, images, gradient, &mut sums.partial.weights, scratch);
        scratch.image = image;
    }

    fn input_by_convolution(&self, turned_weights: &[f32], gradient: &[f32], out: &mut [f32], scratch: &mut Scratch) {
        let turned = self.turned();
        let no_bias = vec![0.0; self.channels];
        if turned.is_minimal() {
            let mut results = Results { output: out, before: &mut [], winners: &mut [] };
            return winograd::forward(&turned, turned_weights, &no_bias, gradient, 0..turned.grid().0, &mut results, scratch);
        }
        let len = self.input_len();
        for tile in turned.whole_images(out.len() / len, CHUNK) {
            let staged = turned.staged(View::Floats(gradient), tile, &mut scratch.gradient);
            let output = &mut out[tile.image * len..(tile.image + tile.images) * len];
            direct::forward(&turned, turned_weights, &no_bias, staged, &mut Results { output, before: &mut [], winners: &mut [] });
        }
    }

    fn weights_by_products(&self, input: View<'_>, gradient: &[f32], sums: &mut Sums<'_>, scratch: &mut Scratch) {
        let (patch, pitch, filters) = (self.patch(), self.pitch(), self.filters);
        let Scratch { image, columns, .. } = scratch;
        for tile in self.tiles(gradient.len() / self.output_len()) {
            let (rows, gradient) = self.of_tile(tile, gradient);
            let columns = sized(columns, rows * pitch);
            self.gather(self.staged(input, tile, image), tile, columns);
            for (at, filter) in self.group_starts() {
                let by_patch = Matrix::rows(&columns[at..], rows, patch, pitch).transposed();
                let gradient = Matrix::rows(&gradient[filter..], rows, filters / self.groups, filters);
                multiply_into(&mut sums.partial.weights[filter..], filters, by_patch, gradient, true);
            }
        }
    }

    fn input_by_products(&self, weights: &[f32], gradient: &[f32], out: &mut [f32], scratch: &mut Scratch) {
        let (patch, patches, filters) = (self.patch(), self.patches(), self.filters);
        let Scratch { columns, gradient: padded, .. } = scratch;
        for tile in self.tiles(gradient.len() / self.output_len()) {
            let (rows, gradient) = self.of_tile(tile, gradient);
            let columns = sized(columns, rows * patches);
            for (at, filter) in self.group_starts() {
                let by_filter = Matrix::rows(&weights[filter..], patch, filters / self.groups, filters).transposed();
                let gradient = Matrix::rows(&gradient[filter..], rows, filters / self.groups, filters);
                multiply_into(&mut columns[at..], patches, gradient, by_filter, false);
            }
            let out = &mut out[tile.image * self.input_len()..][..tile.images * self.input_len()];
            if tile.row == 0 {
                out.fill(0.0);
            }
            self.spread(tile, columns, out, padded, tile.row + tile.rows == self.computed().0);
        }
    }

    /// How many outputs before pooling a tile has, and their gradient.
    fn of_tile<'a>(&self, tile: Tile, gradient: &'a [f32]) -> (usize, &'a [f32]) {
        let width = self.computed().1;
        let rows = tile.images * tile.rows * width;
        let start = tile.image * self.output_len() + tile.row * width * self.filters;
        (rows, &gradient[start..start + rows * self.filters])
    }

    /// Adds the gradients of a tile's patches (rows of [`Conv::patches`] values) to those of its images.
    fn spread(&self, tile: Tile, columns: &[f32], out: &mut [f32], padded: &mut Vec<f32>, is_last: bool) {
        let (_, width) = self.computed();
        let per_image = tile.rows * width * self.patches();
        let len = self.padded_len();
        if !self.is_padded() {
            for (image, out) in out.chunks_exact_mut(len).enumerate() {
                patches::spread(self, &columns[image * per_image..][..per_image], tile.row, tile.rows, out);
            }
            return;
        }
        let padded = sized(padded, tile.images * len);
        if tile.row == 0 {
            padded.fill(0.0);
        }
        for (image, padded) in padded.chunks_exact_mut(len).enumerate() {
            patches::spread(self, &columns[image * per_image..][..per_image], tile.row, tile.rows, padded);
        }
        if is_last {
            padded.chunks_exact(len).zip(out.chunks_exact_mut(self.input_len())).for_each(|(padded, out)| self.crop(padded, out));
        }
    }

    /// Takes the image out of its border.
    fn crop(&self, padded: &[f32], out: &mut [f32]) {
        let line = self.width * self.channels;
        for (y, out) in out.chunks_exact_mut(line).enumerate() {
            let from = ((y + self.top) * self.padded_width + self.left) * self.channels;
            out.copy_from_slice(&padded[from..from + line]);
        }
    }

    /// Writes the summed weight gradient in the order of the weights, `[patch, filters]`.
    pub(crate) fn weights_gradient(&self, summed: &[f32], out: &mut [f32]) {
        if !self.gradient_is_by_filter() {
            return out.copy_from_slice(summed);
        }
        sparse::weights_gradient(self, summed, out);
    }
}
