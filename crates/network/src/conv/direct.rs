//! The direct convolution: no patches are copied; what follows a convolution happens before its sums leave their registers: the
//! maximum of a pooling window, the bias, ReLU. And its gradients: that of the weights, and that of the input, which for a stride of
//! one is a convolution itself.
#![expect(clippy::undocumented_unsafe_blocks, reason = "all of it rests on what the callers of the unsafe functions promise")]

use std::marker::PhantomData;

use super::{
    Conv, Results,
    tile::{Finish, Walk, even, for_filters, pair, single, tile},
};
use crate::{
    layer::Activation,
    scratch::Aligned,
    simd::vector::{Vector, for_each_vector},
};

/// Outputs of some images, which have their borders, with [`Conv::packed_weights`]. Activations other than ReLU are left to the caller.
pub(super) fn forward(conv: &Conv, weights: &[f32], bias: &[f32], images: &[f32], results: &mut Results<'_>) {
    // What the kernel relies on.
    let count = images.len() / conv.padded_len();
    assert!(images.len() == count * conv.padded_len() && weights.len() == conv.packed_len() && bias.len() == conv.filters);
    assert!(results.output.len() == count * conv.output_len() && conv.pool <= 2);
    assert!(results.winners.is_empty() || results.winners.len() == count * conv.output_len());
    // SAFETY: just checked.
    unsafe { forward_unchecked(conv, weights, bias, images, results) }
}

/// Adds some images' gradient of the weights, `[patch, filters]`. `gradient` is that of the sums (before bias and activation).
pub(super) fn add_weights_gradient(conv: &Conv, images: &[f32], gradient: &[f32], sums: &mut [f32]) {
    let count = images.len() / conv.padded_len();
    assert!(images.len() == count * conv.padded_len() && sums.len() == conv.weights_len());
    assert!(gradient.len() == count * conv.output_len() && conv.pool == 1);
    // SAFETY: just checked.
    unsafe { weights_gradient_unchecked(conv, images, gradient, sums) }
}

impl Conv {
    /// The weights as `[filters / n, patch, n]`, where `n` is what the kernel takes at once, with zeros behind the last filter: what it reads
    /// lies together. Rows of all filters would fall on few lines of the first-level cache and push each other out.
    pub(crate) fn packed_weights(&self, weights: &[f32]) -> Aligned {
        assert_eq!(weights.len(), self.weights_len());
        let mut all = Aligned::zeros(self.packed_len());
        // SAFETY: the sizes were just made to fit.
        unsafe { pack_unchecked(self.patch(), self.filters, weights, all.values_mut()) };
        all
    }

    fn packed_len(&self) -> usize {
        self.patch() * self.filters.next_multiple_of(LANES)
    }

    /// The convolution that takes the gradient of this one's sums to that of its input, where the stride is one and nothing
    /// is pooled; with [`Conv::turned_weights`].
    pub(super) fn turned(&self) -> Conv {
        Conv {
            height: self.out_height,
            width: self.out_width,
            channels: self.filters,
            top: self.rows - 1 - self.top,
            left: self.columns - 1 - self.left,
            padded_height: self.height + self.rows - 1,
            padded_width: self.width + self.columns - 1,
            filters: self.channels,
            activation: Activation::None,
            out_height: self.height,
            out_width: self.width,
            ..*self
        }
    }

    /// The weights as `[rows, columns, filters, channels]`, both kernel axes backwards.
    pub(super) fn turned_weights(&self, weights: &[f32]) -> Aligned {
        let mut all = Aligned::zeros(weights.len());
        let size = self.channels * self.filters;
        for (turned, weights) in all.values_mut().chunks_exact_mut(size).zip(weights.chunks_exact(size).rev()) {
            for (channel, weights) in weights.chunks_exact(self.filters).enumerate() {
                for (filter, weight) in weights.iter().enumerate() {
                    turned[filter * self.channels + channel] = *weight;
                }
            }
        }
        all
    }
}

/// Filters are packed to whole vectors of any kind.
const LANES: usize = 16;

for_each_vector! {
    unsafe fn pack_unchecked<V>(patch: usize, filters: usize, weights: &[f32], out: &mut [f32]) {
        for_filters!(V, filters, |filter, lanes, N| {
            for k in 0..patch {
                for n in 0..N {
                    let used = if n + 1 < N { V::LANES } else { lanes };
                    unsafe {
                        let value = V::load_first(weights[k * filters + filter + n * V::LANES..].as_ptr(), used);
                        value.store(out[filter * patch + (k * N + n) * V::LANES..].as_mut_ptr());
                    }
                }
            }
        });
    }
}

for_each_vector! {
    unsafe fn forward_unchecked<V>(conv: &Conv, weights: &[f32], bias: &[f32], images: &[f32], results: &mut Results<'_>) {
        // Filters first, so that the weights of a tile's filters stay in the cache.
        for_filters!(V, conv.filters, |filter, lanes, N| {
            for (index, image) in images.chunks_exact(conv.padded_len()).enumerate() {
                unsafe { some_filters::<V, N>(conv, weights, bias, image, results, index, filter, lanes) };
            }
        });
    }
}

/// All outputs of one image and `N` vectors of filters.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn some_filters<V: Vector, const N: usize>(
    conv: &Conv,
    weights: &[f32],
    bias: &[f32],
    image: &[f32],
    results: &mut Results<'_>,
    index: usize,
    filter: usize,
    lanes: usize,
) {
    let (height, width) = conv.computed();
    let line = conv.padded_width * conv.channels;
    let walk = Walk {
        down: conv.stride * line,
        right: conv.stride * conv.channels,
        step: 1,
        run: conv.columns * conv.channels,
        line,
        rows: conv.rows,
        image: 0,
        images: 1,
        vector: N * V::LANES,
        lanes: V::LANES,
    };
    let first = index * conv.output_len() + filter;
    let bias: [V; N] = std::array::from_fn(|n| unsafe { load_lanes(&bias[filter..], n, N, lanes) });
    let mut y = 0;
    while y < height {
        let rows = (height - y).min(2);
        let most =
            if rows == 2 { whole_windows(even(width, pair::<V, N>()), pair::<V, N>(), conv.pool) } else { even(width, single::<V, N>()) };
        for x in (0..width).step_by(most) {
            let scalars = image[y * walk.down + x * walk.right..].as_ptr();
            let weights = weights[filter * conv.patch()..].as_ptr();
            let out = Outputs { conv, results: &mut *results, first, y, x, lanes, bias };
            unsafe { tile((rows, most.min(width - x)), &walk, scalars, weights, out) };
        }
        y += rows;
    }
}

/// `columns`, or as many more as make whole windows; fewer where a tile has no room for more.
#[inline(always)]
fn whole_windows(columns: usize, most: usize, window: usize) -> usize {
    let up = columns.next_multiple_of(window);
    if up > most { most / window * window } else { up }
}

#[inline(always)]
unsafe fn load_lanes<V: Vector>(values: &[f32], n: usize, count: usize, lanes: usize) -> V {
    unsafe { V::load_first(values[n * V::LANES..].as_ptr(), if n + 1 == count { lanes } else { V::LANES }) }
}

/// Where a tile's outputs go.
pub(super) struct Outputs<'a, 'b, V, const N: usize> {
    pub(super) conv: &'a Conv,
    pub(super) results: &'a mut Results<'b>,
    /// The first of these filters' outputs of this image.
    pub(super) first: usize,
    /// The tile's first output before pooling.
    pub(super) y: usize,
    pub(super) x: usize,
    /// Lanes in use of the last vector.
    pub(super) lanes: usize,
    pub(super) bias: [V; N],
}

impl<V: Vector, const N: usize> Finish<V, N> for Outputs<'_, '_, V, N> {
    #[inline(always)]
    unsafe fn finish<const ROWS: usize, const COLUMNS: usize>(mut self, sums: [[[V; N]; COLUMNS]; ROWS]) {
        unsafe {
            if self.conv.pool == 2 {
                // Tiles of a pooled layer are made of whole windows.
                if ROWS == 2 && COLUMNS.is_multiple_of(2) {
                    self.pool(&sums);
                }
                return;
            }
            for (row, sums) in sums.iter().enumerate() {
                for (column, sums) in sums.iter().enumerate() {
                    self.write(self.y + row, self.x + column, *sums);
                }
            }
        }
    }
}

impl<V: Vector, const N: usize> Outputs<'_, '_, V, N> {
    #[inline(always)]
    unsafe fn pool<const ROWS: usize, const COLUMNS: usize>(&mut self, sums: &[[[V; N]; COLUMNS]; ROWS]) {
        for pair in 0..COLUMNS / 2 {
            let (y, x) = (self.y / 2, self.x / 2 + pair);
            let window = [sums[0][2 * pair], sums[0][2 * pair + 1], sums[ROWS - 1][2 * pair], sums[ROWS - 1][2 * pair + 1]];
            let mut best = window[0];
            unsafe {
                if self.results.winners.is_empty() {
                    for others in &window[1..] {
                        for (best, other) in best.iter_mut().zip(others) {
                            *best = best.or_greater(*other);
                        }
                    }
                } else {
                    let mut places = [V::splat(0.0); N];
                    for (place, others) in window.iter().enumerate().skip(1) {
                        for n in 0..N {
                            (best[n], places[n]) = best[n].or_greater_at(places[n], others[n], V::splat(place as f32));
                        }
                    }
                    let at = self.at(y, x);
                    for (n, places) in places.iter().enumerate() {
                        let lanes = if n + 1 == N { self.lanes } else { V::LANES };
                        places.store_bytes(self.results.winners.as_mut_ptr().add(at + n * V::LANES), lanes);
                    }
                }
                self.write(y, x, best);
            }
        }
    }

    #[inline(always)]
    fn at(&self, y: usize, x: usize) -> usize {
        self.first + (y * self.conv.out_width + x) * self.conv.filters
    }

    /// Adds the bias, and applies ReLU if that is the activation.
    #[inline(always)]
    unsafe fn write(&mut self, y: usize, x: usize, sums: [V; N]) {
        let at = self.at(y, x);
        for (n, (sum, bias)) in sums.iter().zip(self.bias).enumerate() {
            unsafe {
                let mut value = sum.add(bias);
                if self.conv.activation == Activation::Relu {
                    value = value.or_greater(V::splat(0.0));
                }
                let out = self.results.output.as_mut_ptr().add(at + n * V::LANES);
                if n + 1 < N || self.lanes == V::LANES { value.store(out) } else { value.store_first(out, self.lanes) }
            }
        }
    }
}

for_each_vector! {
    /// A tile is some neighbouring values of a patch, whose weights' gradients are summed over all outputs of all images.
    unsafe fn weights_gradient_unchecked<V>(conv: &Conv, images: &[f32], gradient: &[f32], sums: &mut [f32]) {
        let line = conv.padded_width * conv.channels;
        let run = conv.columns * conv.channels;
        for_filters!(V, conv.filters, |filter, lanes, N| {
            let most = even(run, single::<V, N>());
            let walk = Walk {
                down: 0,
                right: 1,
                step: conv.stride * conv.channels,
                run: conv.out_width,
                line: conv.stride * line,
                rows: conv.out_height,
                image: conv.padded_len(),
                images: images.len() / conv.padded_len(),
                vector: conv.filters,
                lanes,
            };
            for row in 0..conv.rows {
                for first in (0..run).step_by(most) {
                    let out = AddTo::<V, N>::rows(&mut sums[(row * run + first) * conv.filters + filter..], conv.filters, lanes);
                    unsafe {
                        tile((1, most.min(run - first)), &walk, images[row * line + first..].as_ptr(), gradient[filter..].as_ptr(), out);
                    }
                }
            }
        });
    }
}

/// Adds a tile of one row to rows of weights.
pub(super) struct AddTo<V, const N: usize> {
    sums: *mut f32,
    /// From one row to the next.
    pitch: usize,
    lanes: usize,
    of: PhantomData<V>,
}

impl<V, const N: usize> AddTo<V, N> {
    /// Where the rows begin, how far they are apart, and the lanes in use of the last vector.
    #[inline(always)]
    pub(super) fn rows(sums: &mut [f32], pitch: usize, lanes: usize) -> Self {
        Self { sums: sums.as_mut_ptr(), pitch, lanes, of: PhantomData }
    }
}

impl<V: Vector, const N: usize> Finish<V, N> for AddTo<V, N> {
    #[inline(always)]
    unsafe fn finish<const ROWS: usize, const COLUMNS: usize>(self, sums: [[[V; N]; COLUMNS]; ROWS]) {
        for (column, sums) in sums[0].iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                unsafe {
                    let to = self.sums.add(column * self.pitch + n * V::LANES);
                    if n + 1 < N || self.lanes == V::LANES {
                        V::load(to).add(*sum).store(to);
                    } else {
                        V::load_first(to, self.lanes).add(*sum).store_first(to, self.lanes);
                    }
                }
            }
        }
    }
}
