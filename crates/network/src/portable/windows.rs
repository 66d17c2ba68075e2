//! Which pixels a window takes in, as lists of places to gather from: the way there, and the way back.

use crate::{architecture::windows, conv::Conv, pool::Pool};

/// Windows that move over an image.
#[derive(Clone, Copy)]
pub(super) struct Windows {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) stride: usize,
    pub(super) dilation: usize,
    /// Rows of zeros above and columns of zeros left of the image.
    pub(super) top: usize,
    pub(super) left: usize,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
}

impl Windows {
    /// Those of a convolution, as far as the pooling behind it takes them in.
    pub(super) fn of_conv(conv: &Conv) -> Self {
        let Conv { height, width, rows, columns, stride, dilation, top, left, .. } = *conv;
        let (out_height, out_width) = (conv.out_height * conv.pool, conv.out_width * conv.pool);
        Windows { height, width, rows, columns, stride, dilation, top, left, out_height, out_width }
    }

    /// Those of the pooling within a convolution's block.
    pub(super) fn behind(conv: &Conv) -> Self {
        let Conv { pool, out_height, out_width, .. } = *conv;
        let (height, width) = (out_height * pool, out_width * pool);
        Windows { height, width, rows: pool, columns: pool, stride: pool, dilation: 1, top: 0, left: 0, out_height, out_width }
    }

    /// Those of a pooling layer.
    pub(super) fn of_pool(pool: &Pool) -> Self {
        let Pool { height, width, rows, columns, stride, .. } = *pool;
        let (out_height, out_width) = (windows(height, rows, stride).unwrap_or(0), windows(width, columns, stride).unwrap_or(0));
        Windows { height, width, rows, columns, stride, dilation: 1, top: 0, left: 0, out_height, out_width }
    }

    pub(super) fn pixels(&self) -> usize {
        self.height * self.width
    }

    pub(super) fn outputs(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Points of a window.
    pub(super) fn points(&self) -> usize {
        self.rows * self.columns
    }

    /// The pixel at a point of an output's window; none beyond the image's border.
    fn pixel(&self, output: usize, point: usize) -> Option<usize> {
        let y = (output / self.out_width * self.stride + point / self.columns * self.dilation).checked_sub(self.top)?;
        let x = (output % self.out_width * self.stride + point % self.columns * self.dilation).checked_sub(self.left)?;
        (y < self.height && x < self.width).then_some(y * self.width + x)
    }

    /// The pixel at one point of each window.
    pub(super) fn at(&self, point: usize) -> Vec<Option<usize>> {
        (0..self.outputs()).map(|output| self.pixel(output, point)).collect()
    }

    /// The pixels of each window, one window after the other.
    pub(super) fn all(&self) -> Vec<Option<usize>> {
        (0..self.outputs() * self.points()).map(|place| self.pixel(place / self.points(), place % self.points())).collect()
    }

    /// For each pixel the output that has it at this point of its window: there is one at most.
    pub(super) fn back(&self, point: usize) -> Vec<Option<usize>> {
        let mut outputs = vec![None; self.pixels()];
        for output in 0..self.outputs() {
            if let Some(pixel) = self.pixel(output, point) {
                outputs[pixel] = Some(output);
            }
        }
        outputs
    }

    /// As [`Windows::back`], among the places of [`Windows::all`].
    pub(super) fn back_among_all(&self, point: usize) -> Vec<Option<usize>> {
        self.back(point).into_iter().map(|output| output.map(|output| output * self.points() + point)).collect()
    }
}
