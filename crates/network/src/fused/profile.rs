//! Where the time on the GPU goes: each kernel's, one by one.

use std::{cell::RefCell, collections::BTreeMap};

use cudarc::driver::{
    DriverError,
    result::event,
    sys::{CUevent_flags, CUstream, cuEventSynchronize},
};

/// How often each kernel ran, and for how many milliseconds together; told on the way out.
#[derive(Default)]
pub(super) struct Profile(RefCell<BTreeMap<String, (u64, f64)>>);

impl Profile {
    /// Launches a kernel and waits for it.
    pub(super) fn time(&self, kernel: &str, stream: CUstream, launch: impl FnOnce() -> Result<(), DriverError>) -> Result<(), DriverError> {
        let flags = CUevent_flags::CU_EVENT_DEFAULT;
        let (start, end) = (event::create(flags)?, event::create(flags)?);
        // SAFETY: both events are new and of this stream, and are destroyed once.
        let took = unsafe {
            event::record(start, stream)?;
            launch()?;
            event::record(end, stream)?;
            cuEventSynchronize(end).result()?;
            let took = event::elapsed(start, end)?;
            event::destroy(start)?;
            event::destroy(end)?;
            took
        };
        let mut times = self.0.borrow_mut();
        let (count, sum) = times.entry(kernel.to_owned()).or_default();
        (*count, *sum) = (*count + 1, *sum + f64::from(took));
        Ok(())
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let times = self.0.borrow();
        let all: f64 = times.values().map(|(_, sum)| sum).sum();
        let mut times: Vec<_> = times.iter().collect();
        times.sort_by(|(_, (_, one)), (_, (_, other))| other.total_cmp(one));
        for (kernel, (count, sum)) in times {
            eprintln!("{kernel:28} {:5.1} %  {count:8} times  {:9.1} µs each", 100.0 * sum / all, 1e3 * sum / *count as f64);
        }
    }
}
