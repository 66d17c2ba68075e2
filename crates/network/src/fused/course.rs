//! A course on the GPU: from its begin to the fetch of what was learnt, nothing comes back and nothing is waited for.

use std::{ops::Range, rc::Rc, sync::Arc};

use super::{
    Done, Fused, Task,
    examples::Set,
    gpu::{Buffer, Gpu, Pointer, launch},
    layers::LossTerms,
    learn::{Learner, Step, square_sum},
};
use crate::{
    accelerator::{Begin, CourseStep, Fetched, WholeSet},
    batchnorm::Running,
    error::NetworkError,
};

/// Bytes of a sight.
const SIGHT: usize = size_of::<crate::Sight>();

/// Running statistics, or their average: mean and variance of each batch norm.
struct Statistics {
    channels: usize,
    mean: Buffer,
    variance: Buffer,
}

impl Statistics {
    fn upload(gpu: &Gpu, running: &Running) -> Done<Self> {
        Ok(Statistics { channels: running.mean.len(), mean: gpu.upload(&running.mean)?, variance: gpu.upload(&running.variance)? })
    }

    fn download(&self, gpu: &Gpu) -> Done<Running> {
        Ok(Running { mean: gpu.download(&self.mean, self.channels)?, variance: gpu.download(&self.variance, self.channels)? })
    }
}

/// What a course has on the GPU besides the weights.
pub(super) struct Course {
    learners: Vec<Learner>,
    is_frozen: Vec<bool>,
    running: Vec<Statistics>,
    average: Option<(Vec<Buffer>, Vec<Statistics>)>,
    clip_norm: Option<f64>,
    loss_terms: LossTerms,
    seed: u64,
    sights: Buffer,
    /// Sum of losses, and of those told right.
    report: Buffer,
}

impl Fused {
    pub(super) fn hold_set(&mut self, whole: &WholeSet) -> Done<bool> {
        // The one before makes room.
        self.set = None;
        self.set = Set::hold(self.gpu(), whole)?;
        Ok(self.set.is_some())
    }

    pub(super) fn begin_course(&mut self, begin: Begin) -> Done<()> {
        let count = self.set.as_ref().map_or(0, Set::count);
        if let Some(sight) = begin.sights.iter().find(|sight| usize::try_from(sight.row).is_ok_and(|row| row >= count) || sight.row < 0) {
            return Err(NetworkError::Device(format!("example {} is asked for, and the set there has {count}", sight.row)));
        }
        // Weights are changed in place: none that an earlier pass took may stand for a version.
        self.held.clear();
        self.take(&begin.state)?;
        let gpu = self.operations.gpu.clone();
        let mut moments: Vec<Vec<Buffer>> = begin.state.parameters.iter().map(|_| Vec::new()).collect();
        for state in &begin.moments {
            for (moments, values) in moments.iter_mut().zip(state) {
                moments.push(gpu.upload(values)?);
            }
        }
        let lengths = begin.state.parameters.iter().map(|(_, values)| values.len());
        let is_frozen = begin.rules.iter().map(|rule| rule.is_frozen).collect();
        let learners = lengths.zip(begin.rules).zip(moments).map(|((length, rule), moments)| Learner { length, rule, moments }).collect();
        let statistics = |running: &[Running]| running.iter().map(|running| Statistics::upload(&gpu, running)).collect::<Done<Vec<_>>>();
        let average = |(parameters, running): (Vec<Arc<Vec<f32>>>, Vec<Running>)| {
            Ok::<_, NetworkError>((parameters.iter().map(|values| gpu.upload(values)).collect::<Done<_>>()?, statistics(&running)?))
        };
        self.course = Some(Course {
            learners,
            is_frozen,
            running: statistics(&begin.state.running)?,
            average: begin.average.map(average).transpose()?,
            clip_norm: begin.clip_norm,
            loss_terms: LossTerms::upload(&gpu, &begin.options)?,
            seed: begin.seed,
            sights: gpu.upload(&begin.sights)?,
            report: gpu.upload(&[0.0f64; 2])?,
        });
        Ok(())
    }

    pub(super) fn course_step_on(&mut self, asked: &CourseStep) -> Done<()> {
        let Some(mut course) = self.course.take() else { return Err(no_course()) };
        let done = self.make_course_step(&mut course, asked);
        self.course = Some(course);
        done
    }

    fn make_course_step(&self, course: &mut Course, asked: &CourseStep) -> Done<()> {
        let gpu = self.gpu();
        let all: usize = asked.parts.iter().map(Range::len).sum();
        let step = |clip| Step { gpu, step: asked.step + 1, rate_factor: asked.rate_factor, clip };
        let mut gradients: Vec<Option<Buffer>> = Vec::new();
        for part in &asked.parts {
            let share = part.len() as f32 / all as f32;
            let of_part = self.part_of(course, part, asked.step, share)?;
            if gradients.is_empty() {
                gradients = of_part;
                continue;
            }
            for ((sum, part), learner) in gradients.iter().zip(&of_part).zip(&course.learners) {
                if let (Some(sum), Some(part)) = (sum, part) {
                    step(Pointer::NULL).blend(part, sum, 1.0, 1.0, learner.length)?;
                }
            }
        }
        let clip = self.clip_factor(course, &gradients)?;
        let step = step(clip.as_ref().map_or(Pointer::NULL, Buffer::pointer));
        for (index, (gradient, learner)) in gradients.iter().zip(&mut course.learners).enumerate() {
            if let (Some(gradient), false) = (gradient, learner.rule.is_frozen) {
                step.update(&self.weight(index), gradient, learner)?;
            }
        }
        if let (Some((parameters, running)), Some(decay)) = (&course.average, asked.decay) {
            for ((index, average), learner) in parameters.iter().enumerate().zip(&course.learners) {
                step.blend(&self.weight(index), average, 1.0 - decay, decay, learner.length)?;
            }
            for (average, running) in running.iter().zip(&course.running) {
                step.blend(&running.mean, &average.mean, 1.0 - decay, decay, running.channels)?;
                step.blend(&running.variance, &average.variance, 1.0 - decay, decay, running.channels)?;
            }
        }
        Ok(())
    }

    /// The gradients of a part of a step; running statistics take note of it.
    fn part_of(&self, course: &Course, part: &Range<usize>, step: u64, share: f32) -> Done<Vec<Option<Buffer>>> {
        let Some(set) = &self.set else { return Err(no_course()) };
        let (gpu, sights) = (self.gpu(), course.sights.pointer().after(SIGHT * part.start));
        let examples = set.see(&self.operations, sights, part.len(), self.input)?;
        let labels = set.labels(gpu, sights, part.len())?;
        let task = Task { loss_terms: &course.loss_terms, seed: course.seed, step, share, is_frozen: &course.is_frozen };
        let taught = self.lesson(examples, labels.pointer(), &task, &course.report)?;
        let blend = Step { gpu, step, rate_factor: 0.0, clip: Pointer::NULL };
        for ((batch, momentum), running) in taught.statistics.iter().zip(&course.running) {
            blend.blend(&batch.mean, &running.mean, *momentum, 1.0 - momentum, running.channels)?;
            blend.blend(&batch.variance, &running.variance, *momentum, 1.0 - momentum, running.channels)?;
        }
        Ok(taught.gradients)
    }

    /// What gradients are multiplied with so that their norm, over all, is at most what was asked for.
    fn clip_factor(&self, course: &Course, gradients: &[Option<Buffer>]) -> Done<Option<Buffer>> {
        let Some(largest) = course.clip_norm else { return Ok(None) };
        let (gpu, sums) = (self.gpu(), self.gpu().take(gradients.len(), 8)?);
        let mut count = 0;
        for (gradient, learner) in gradients.iter().zip(&course.learners) {
            if let (Some(gradient), false) = (gradient, learner.rule.is_frozen) {
                square_sum(gpu, gradient, learner.length, sums.pointer().after(8 * count))?;
                count += 1;
            }
        }
        let factor = gpu.floats(1)?;
        launch!(gpu, "clip_by", (1, 1, 1), (1, 1), sums.pointer(), count as i32, largest as f32, factor.pointer())?;
        Ok(Some(factor))
    }

    pub(super) fn course_so_far(&self) -> Done<[f64; 2]> {
        let Some(course) = &self.course else { return Err(no_course()) };
        let report = self.gpu().download_doubles(&course.report, 2)?;
        Ok([report[0], report[1]])
    }

    pub(super) fn fetch_course(&mut self) -> Done<Fetched> {
        let (gpu, Some(course)) = (self.operations.gpu.clone(), &self.course) else { return Err(no_course()) };
        let lengths = || course.learners.iter().map(|learner| learner.length);
        let download = |buffers: Vec<&Buffer>| {
            lengths().zip(buffers).map(|(length, buffer)| Ok(Arc::new(gpu.download(buffer, length)?))).collect::<Done<Vec<_>>>()
        };
        let running = |statistics: &[Statistics]| statistics.iter().map(|statistics| statistics.download(&gpu)).collect::<Done<Vec<_>>>();
        let weights: Vec<Rc<Buffer>> = (0..course.learners.len()).map(|index| self.weight(index)).collect();
        let states = course.learners.first().map_or(0, |learner| learner.moments.len());
        let moments = |state: usize| {
            course.learners.iter().map(|learner| gpu.download(&learner.moments[state], learner.length)).collect::<Done<Vec<_>>>()
        };
        Ok(Fetched {
            parameters: download(weights.iter().map(|buffer| &**buffer).collect())?,
            running: running(&course.running)?,
            moments: (0..states).map(moments).collect::<Done<_>>()?,
            average: match &course.average {
                Some((parameters, statistics)) => Some((download(parameters.iter().collect())?, running(statistics)?)),
                None => None,
            },
        })
    }
}

fn no_course() -> NetworkError {
    NetworkError::Device("no course has been begun".into())
}
