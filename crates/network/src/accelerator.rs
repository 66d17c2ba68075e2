//! A thread that owns a device and computes on it for a network.
//!
//! Devices' handles belong to a thread, and libraries for them panic where an error is due. So the device lives on a thread of its own; what
//! goes there and comes back are plain vectors, and a panic there is an error here.

#![cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "there is no device to start"))]

use std::{
    any::Any,
    collections::BTreeMap,
    fmt::Display,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
};

use crate::{
    architecture::Shape,
    batchnorm::Running,
    course::Sight,
    error::NetworkError,
    examples::Values,
    loss::{LossOptions, StepReport},
    optimiser::OptimiserConfig,
    plan::{Placed, Role},
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

/// A set of examples that stays on a device; it has been checked.
pub(crate) struct WholeSet {
    pub(crate) values: Values,
    pub(crate) shape: Shape,
    pub(crate) labels: Vec<u32>,
    /// Side of the square that is cut out of an image, and its colour.
    pub(crate) cutout: usize,
    pub(crate) fill: Vec<u8>,
}

/// How a tensor learns: by which optimiser, and what that has to know of it.
pub(crate) struct Rule {
    pub(crate) config: OptimiserConfig,
    /// Its last axis.
    pub(crate) columns: usize,
    pub(crate) role: Role,
    pub(crate) is_frozen: bool,
}

/// The weights of a moving average, and its running statistics.
pub(crate) type Average = (Vec<Arc<Vec<f32>>>, Vec<Running>);

/// All that a course begins with.
pub(crate) struct Begin {
    pub(crate) state: State,
    /// Of each parameter.
    pub(crate) rules: Vec<Rule>,
    /// For each state of the optimiser, one list a parameter.
    pub(crate) moments: Vec<Vec<Vec<f32>>>,
    pub(crate) average: Option<Average>,
    pub(crate) clip_norm: Option<f64>,
    pub(crate) options: LossOptions,
    /// It determines the dropout masks.
    pub(crate) seed: u64,
    pub(crate) sights: Vec<Sight>,
}

/// A step of a course.
pub(crate) struct CourseStep {
    /// Of the sights.
    pub(crate) parts: Vec<Range<usize>>,
    /// Steps before it.
    pub(crate) step: u64,
    pub(crate) rate_factor: f64,
    /// What the moving average keeps of itself, where there is one.
    pub(crate) decay: Option<f32>,
}

/// All that a course has changed.
pub(crate) struct Fetched {
    pub(crate) parameters: Vec<Arc<Vec<f32>>>,
    pub(crate) running: Vec<Running>,
    pub(crate) moments: Vec<Vec<Vec<f32>>>,
    pub(crate) average: Option<Average>,
}

/// Waits for what was begun, and brings it back.
pub(crate) type Waiting = Box<dyn FnOnce() -> Result<Vec<f32>, NetworkError>>;

/// What computes on a device.
pub(crate) trait Engine {
    /// Forward, loss and backward pass.
    fn learn(&mut self, state: &State, lesson: &Lesson) -> Result<Learnt, NetworkError>;
    /// Begins to compute the logits of each example, `[examples, classes]`.
    fn submit(&mut self, state: &State, input: &Values) -> Result<Waiting, NetworkError>;

    /// Takes examples of another shape from now on, with blocks planned for it; false if a new engine has to be made for them.
    fn resize(&mut self, _blocks: &[Placed], _input: Shape) -> bool {
        false
    }

    /// Takes a set to the device; false if there is no room, or the engine holds none, and then there are no courses.
    fn hold(&mut self, _set: &WholeSet) -> Result<bool, NetworkError> {
        Ok(false)
    }

    fn begin(&mut self, _begin: Begin) -> Result<(), NetworkError> {
        Err(no_courses())
    }

    fn course_step(&mut self, _step: &CourseStep) -> Result<(), NetworkError> {
        Err(no_courses())
    }

    /// The sum of losses, and how many examples were told right.
    fn so_far(&mut self) -> Result<[f64; 2], NetworkError> {
        Err(no_courses())
    }

    fn fetch(&mut self) -> Result<Fetched, NetworkError> {
        Err(no_courses())
    }
}

fn no_courses() -> NetworkError {
    NetworkError::Device("this engine has no courses".into())
}

/// What the thread works at.
struct Desk<'a> {
    engine: &'a mut dyn Engine,
    /// What was begun and nobody has asked for yet, by number.
    waiting: BTreeMap<u64, Result<Waiting, NetworkError>>,
}

type Job = Box<dyn FnOnce(&mut Desk<'_>) + Send>;

/// A device at work for a network; it is given back when this is dropped.
pub(crate) struct Accelerator {
    jobs: Sender<Job>,
    /// Numbers given to what was begun.
    begun: AtomicU64,
    /// What went wrong where nobody waited for it.
    failure: Arc<Mutex<Option<NetworkError>>>,
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
                    let mut desk = Desk { engine: &mut engine, waiting: BTreeMap::new() };
                    queue.iter().for_each(|job| job(&mut desk));
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        is_ready.recv().map_err(gone)??;
        Ok(Accelerator { jobs, begun: AtomicU64::new(0), failure: Arc::default() })
    }

    /// [`Engine::learn`] on its thread.
    pub(crate) fn learn(&self, state: State, lesson: Lesson) -> Result<Learnt, NetworkError> {
        self.ask(move |engine| engine.learn(&state, &lesson))
    }

    /// [`Engine::submit`] on its thread, which is not waited for; gives the number by which to [collect](Self::collect) the logits, or to
    /// [forget](Self::forget) them.
    pub(crate) fn submit(&self, state: State, input: Values) -> Result<u64, NetworkError> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let job: Job = Box::new(move |desk| {
            let begun = catch_unwind(AssertUnwindSafe(|| desk.engine.submit(&state, &input)));
            desk.waiting.insert(number, begun.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))));
        });
        self.jobs.send(job).map_err(gone)?;
        Ok(number)
    }

    /// The logits of what was begun.
    pub(crate) fn collect(&self, number: u64) -> Result<Vec<f32>, NetworkError> {
        self.ask_desk(move |desk| match desk.waiting.remove(&number) {
            Some(waiting) => waiting?(),
            None => Err(NetworkError::Device("this was asked for already".into())),
        })
    }

    /// Lets go of what was begun.
    pub(crate) fn forget(&self, number: u64) {
        // A thread that has ended has forgotten it.
        let _ = self.jobs.send(Box::new(move |desk| drop(desk.waiting.remove(&number))));
    }

    /// [`Engine::resize`] on its thread.
    pub(crate) fn resize(&self, blocks: Vec<Placed>, input: Shape) -> Result<bool, NetworkError> {
        self.ask(move |engine| Ok(engine.resize(&blocks, input)))
    }

    /// [`Engine::hold`] on its thread.
    pub(crate) fn hold(&self, set: WholeSet) -> Result<bool, NetworkError> {
        self.ask(move |engine| engine.hold(&set))
    }

    /// [`Engine::begin`] on its thread.
    pub(crate) fn begin(&self, begin: Begin) -> Result<(), NetworkError> {
        self.ask(move |engine| engine.begin(begin))
    }

    /// [`Engine::course_step`] on its thread, some time later; what goes wrong there is told by whoever asks next.
    pub(crate) fn course_step(&self, step: CourseStep) -> Result<(), NetworkError> {
        self.check()?;
        let failure = self.failure.clone();
        let job: Job = Box::new(move |desk| {
            let mut failure = failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if failure.is_none() {
                let done = catch_unwind(AssertUnwindSafe(|| desk.engine.course_step(&step)));
                *failure = done.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))).err();
            }
        });
        self.jobs.send(job).map_err(gone)
    }

    /// [`Engine::so_far`] on its thread.
    pub(crate) fn so_far(&self) -> Result<[f64; 2], NetworkError> {
        self.ask(|engine| engine.so_far())
    }

    /// [`Engine::fetch`] on its thread.
    pub(crate) fn fetch(&self) -> Result<Fetched, NetworkError> {
        self.ask(|engine| engine.fetch())
    }

    /// What went wrong since it was last asked.
    fn check(&self) -> Result<(), NetworkError> {
        self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take().map_or(Ok(()), Err)
    }

    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Engine) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        self.ask_desk(move |desk| work(desk.engine))
    }

    fn ask_desk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Desk<'_>) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let (answer, answered) = channel();
        let job: Job = Box::new(move |desk| {
            let done = catch_unwind(AssertUnwindSafe(|| work(desk)));
            // Whoever asked waits for it.
            let _ = answer.send(done.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))));
        });
        self.jobs.send(job).map_err(gone)?;
        let answer = answered.recv().map_err(gone)?;
        self.check()?;
        answer
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

        fn submit(&mut self, state: &State, _: &Values) -> Result<Waiting, NetworkError> {
            assert!(!state.parameters.is_empty(), "there are no weights");
            Ok(Box::new(|| Ok(vec![1.0])))
        }
    }

    #[test]
    fn a_panic_on_the_devices_thread_is_an_error_and_the_thread_goes_on() {
        let accelerator = Accelerator::start(|| Ok(Careless)).unwrap();
        let logits = |parameters| {
            let input = Values::Floats(Arc::new(vec![0.0].into()));
            accelerator.collect(accelerator.submit(State { parameters, running: Vec::new() }, input).unwrap())
        };
        assert!(logits(Vec::new()).unwrap_err().to_string().contains("there are no weights"));
        assert_eq!(logits(vec![(0, Arc::default())]).unwrap(), [1.0]);
    }

    #[test]
    fn what_was_begun_is_collected_once_in_any_order_or_forgotten() {
        let accelerator = Accelerator::start(|| Ok(Careless)).unwrap();
        let submit = || {
            let input = Values::Floats(Arc::new(vec![0.0].into()));
            accelerator.submit(State { parameters: vec![(0, Arc::default())], running: Vec::new() }, input).unwrap()
        };
        let (first, second, third) = (submit(), submit(), submit());
        accelerator.forget(second);
        assert_eq!((accelerator.collect(third).unwrap(), accelerator.collect(first).unwrap()), (vec![1.0], vec![1.0]));
        assert!(accelerator.collect(first).is_err() && accelerator.collect(second).is_err());
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
