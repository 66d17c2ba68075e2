//! A training that goes on within a GPU: the examples lie there, and weights and the optimiser's state stay from one step to the next, so a
//! step asks for nothing and waits for nothing.

use std::ops::Range;

use crate::{
    accelerator::{Accelerator, Begin, CourseStep, WholeSet},
    error::NetworkError,
    examples::Input,
    loss::{self, LossOptions},
    network::{Network, Snapshot},
    optimiser::Optimiser,
};

/// Which example of a set a step sees, and how. On the processor, `transform::View` and a cutout do the same to bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sight {
    /// The example's place in the set.
    pub row: i32,
    /// Pixels that what is seen begins below the image's corner; what lies beyond the image mirrors it.
    pub down: i32,
    /// Pixels that it begins right of the corner.
    pub right: i32,
    /// 1 where left and right change places, after the shift.
    pub is_mirrored: i32,
    /// The row of the middle of the square that is cut out, where one is.
    pub cut_y: i32,
    /// Its column.
    pub cut_x: i32,
}

/// Examples to learn from, whole.
pub struct Set<'a> {
    /// The examples.
    pub input: Input<'a>,
    /// The class of each, from 0.
    pub labels: &'a [u32],
    /// Side of the square that is cut out of each image; 0 where none is.
    pub cutout: usize,
    /// The colour of that square, one byte a channel; of images only.
    pub fill: &'a [u8],
}

impl Network {
    /// Whether it computes on a GPU, which may have room for a set.
    pub fn holds_sets(&self) -> bool {
        self.accelerator.is_some()
    }

    /// Takes a set to the GPU for courses, in place of the one before.
    ///
    /// Gives false where the network computes on this processor, or there is no room for the set: then examples have to come batch by batch.
    ///
    /// # Errors
    ///
    /// If a label has no logit, sizes do not fit, or the GPU fails.
    pub fn hold(&mut self, set: Set<'_>) -> Result<bool, NetworkError> {
        let Some(accelerator) = &self.accelerator else { return Ok(false) };
        let examples = self.count(set.input)?;
        if examples != set.labels.len() {
            let why = format!("the set holds {examples} examples");
            return Err(NetworkError::Size { what: "the labels", found: set.labels.len(), expected: examples, why });
        }
        loss::check_labels(set.labels, self.classes())?;
        let (fill, labels) = (set.fill.to_vec(), set.labels.to_vec());
        accelerator.hold(WholeSet { values: set.input.to_values(), shape: self.architecture().input, labels, cutout: set.cutout, fill })
    }

    /// Begins a course: takes weights, the optimiser's state and the moving average to the GPU, which has the set already. `sights` are the
    /// examples of its steps in their order.
    ///
    /// Until [`Network::fetch_course`], what the GPU has is ahead of this network, the optimiser and the average.
    ///
    /// # Errors
    ///
    /// If an option is out of its range, a sight is of no example, or the GPU fails.
    pub fn begin_course(
        &mut self,
        optimiser: &Optimiser,
        average: Option<&Snapshot>,
        sights: Vec<Sight>,
        options: &LossOptions,
    ) -> Result<(), NetworkError> {
        options.check(self.classes())?;
        let rules = self.parameters.iter().enumerate().map(|(index, parameter)| optimiser.rule(self, index, parameter)).collect();
        let begin = Begin {
            state: self.state(),
            rules,
            moments: optimiser.moments(),
            average: average.map(Snapshot::parts),
            clip_norm: optimiser.clip_norm(),
            options: options.clone(),
            seed: self.seed,
            sights,
        };
        self.course()?.begin(begin)
    }

    /// One step, with the optimiser's learning rate as it is now; `parts` of the sights pass one after the other, as in
    /// [`Network::train_step_in_parts`]. With a `decay`, the average moves, as in [`Network::average_into`]. Does not wait for it.
    ///
    /// # Errors
    ///
    /// If the GPU has failed in this or an earlier step.
    pub fn step_in_course(&mut self, parts: Vec<Range<usize>>, optimiser: &mut Optimiser, decay: Option<f32>) -> Result<(), NetworkError> {
        let (step, rate_factor) = (optimiser.step(), optimiser.rate_factor());
        optimiser.count_step();
        self.course()?.course_step(CourseStep { parts, step, rate_factor, decay })
    }

    /// The sum of the losses of all examples since the course began, and how many were told right. Waits for all steps.
    ///
    /// # Errors
    ///
    /// If the GPU has failed.
    pub fn course_so_far(&mut self) -> Result<(f64, usize), NetworkError> {
        let [losses, correct] = self.course()?.so_far()?;
        Ok((losses, correct as usize))
    }

    /// Brings everything back as it is now; the course can go on.
    ///
    /// # Errors
    ///
    /// If the GPU has failed.
    pub fn fetch_course(&mut self, optimiser: &mut Optimiser, average: Option<&mut Snapshot>) -> Result<(), NetworkError> {
        let fetched = self.course()?.fetch()?;
        self.restore(&Snapshot::of(fetched.parameters, fetched.running))?;
        optimiser.set_moments(fetched.moments);
        if let (Some(average), Some((parameters, running))) = (average, fetched.average) {
            *average = Snapshot::of(parameters, running);
        }
        Ok(())
    }

    fn course(&self) -> Result<&Accelerator, NetworkError> {
        self.accelerator.as_ref().ok_or_else(|| NetworkError::Device("a course needs a GPU".into()))
    }
}
