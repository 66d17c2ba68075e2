//! A thread that owns a device and computes on it for a network.
//!
//! Devices' handles belong to a thread, and libraries for them panic where an error is due. So the device lives on a thread of its own; what
//! goes there and comes back are plain vectors, and a panic there is an error here.

#![cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "there is no device to start"))]

use std::{
    any::Any,
    fmt::Display,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread,
};

use crate::{
    batchnorm::Running,
    error::NetworkError,
    examples::Values,
    loss::{LossOptions, StepReport},
};

/// What a network knows, as it is now.
pub(crate) struct State {
    /// The values of each parameter, and a version that is another one once they have changed.
    pub(crate) parameters: Vec<(u64, Arc<Vec<f32>>)>,
    /// Of each batch norm.
    pub(crate) running: Vec<Running>,
}

/// A batch to learn from; it has been checked.
pub(crate) struct Lesson {
    pub(crate) input: Values,
    pub(crate) labels: Vec<u32>,
    pub(crate) options: LossOptions,
    /// They determine the dropout masks.
    pub(crate) seed: u64,
    pub(crate) step: u64,
}

/// What a batch teaches.
pub(crate) struct Learnt {
    pub(crate) report: StepReport,
    /// Of each parameter.
    pub(crate) gradients: Vec<Vec<f32>>,
    /// Of each batch norm, that of the batch, with its momentum.
    pub(crate) statistics: Vec<(Running, f32)>,
}

/// What computes on a device.
pub(crate) trait Engine {
    /// Forward, loss and backward pass.
    fn learn(&mut self, state: &State, lesson: &Lesson) -> Result<Learnt, NetworkError>;
    /// The logits of each example, `[examples, classes]`.
    fn logits(&mut self, state: &State, input: &Values) -> Result<Vec<f32>, NetworkError>;
}

type Job = Box<dyn FnOnce(&mut dyn Engine) + Send>;

/// A device at work for a network; it is given back when this is dropped.
pub(crate) struct Accelerator {
    jobs: Sender<Job>,
}

impl Accelerator {
    /// Starts the thread, which makes its engine there; returns once that has succeeded.
    pub(crate) fn start<E: Engine>(make: impl FnOnce() -> Result<E, NetworkError> + Send + 'static) -> Result<Self, NetworkError> {
        let (jobs, queue) = channel::<Job>();
        let (ready, is_ready) = channel();
        thread::spawn(move || {
            let made = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
            match made {
                Ok(mut engine) => {
                    let _ = ready.send(Ok(()));
                    queue.iter().for_each(|job| job(&mut engine));
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        is_ready.recv().map_err(gone)??;
        Ok(Accelerator { jobs })
    }

    /// [`Engine::learn`] on its thread.
    pub(crate) fn learn(&self, state: State, lesson: Lesson) -> Result<Learnt, NetworkError> {
        self.ask(move |engine| engine.learn(&state, &lesson))
    }

    /// [`Engine::logits`] on its thread.
    pub(crate) fn logits(&self, state: State, input: Values) -> Result<Vec<f32>, NetworkError> {
        self.ask(move |engine| engine.logits(&state, &input))
    }

    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Engine) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let (answer, answered) = channel();
        let job: Job = Box::new(move |engine| {
            let done = catch_unwind(AssertUnwindSafe(|| work(engine)));
            // Whoever asked waits for it.
            let _ = answer.send(done.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))));
        });
        self.jobs.send(job).map_err(gone)?;
        answered.recv().map_err(gone)?
    }
}

fn panicked(panic: &(dyn Any + Send)) -> NetworkError {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    NetworkError::device(text.unwrap_or_else(|| "a panic without a message".into()))
}

fn gone(_: impl Display) -> NetworkError {
    NetworkError::Device("its thread has ended".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Careless;

    impl Engine for Careless {
        fn learn(&mut self, _: &State, _: &Lesson) -> Result<Learnt, NetworkError> {
            panic!("called `Result::unwrap()` on an `Err` value: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")")
        }

        fn logits(&mut self, state: &State, _: &Values) -> Result<Vec<f32>, NetworkError> {
            assert!(!state.parameters.is_empty(), "there are no weights");
            Ok(vec![1.0])
        }
    }

    #[test]
    fn a_panic_on_the_devices_thread_is_an_error_and_the_thread_goes_on() {
        let accelerator = Accelerator::start(|| Ok(Careless)).unwrap();
        let logits = |parameters| {
            let input = Values::Floats(Arc::new(vec![0.0].into()));
            accelerator.logits(State { parameters, running: Vec::new() }, input)
        };
        assert!(logits(Vec::new()).unwrap_err().to_string().contains("there are no weights"));
        assert_eq!(logits(vec![(0, Arc::default())]).unwrap(), [1.0]);
    }

    #[test]
    fn a_device_whose_memory_is_full_says_what_to_do() {
        let accelerator = Accelerator::start(|| Ok(Careless)).unwrap();
        let input = Values::Floats(Arc::new(vec![0.0].into()));
        let lesson = Lesson { input, labels: vec![0], options: LossOptions::default(), seed: 1, step: 0 };
        let error = accelerator.learn(State { parameters: Vec::new(), running: Vec::new() }, lesson).err().unwrap().to_string();
        assert!(error.contains("CUDA_ERROR_OUT_OF_MEMORY") && error.contains("`accumulate = 2`"), "{error}");
    }

    #[test]
    fn a_device_that_cannot_be_had_is_an_error_at_the_start() {
        let none = || -> Result<Careless, NetworkError> { panic!("no such device") };
        assert!(Accelerator::start(none).err().unwrap().to_string().contains("no such device"));
    }
}
