//! How the learning rate goes on from the optimiser's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate goes on from the optimiser's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays.
    #[default]
    Constant,
    /// Down in a straight line to zero.
    Linear,
    /// Half a cosine down to zero (Loshchilov and Hutter 2017, equation 5, one period).
    Cosine,
    /// A tenth after half of the steps, a hundredth after three quarters (He et al. 2016).
    Step,
    /// Up from a twenty-fifth during `warm_up` (three tenths of the steps unless said), then half a cosine down to zero (Smith and
    /// Topin 2018).
    OneCycle,
}

/// Where [`Schedule::OneCycle`] begins, and how long it rises unless told otherwise.
const ONE_CYCLE: (f64, f64) = (1.0 / 25.0, 0.3);

impl Schedule {
    /// The rate as a share of the optimiser's. `done` is the share of all steps that are done; `warm_up` the share during which the rate
    /// rises in a straight line, from zero but for one cycle.
    pub fn factor(self, done: f64, warm_up: Option<f64>) -> f64 {
        let cosine = |done: f64| 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        let (start, warm_up) = match self {
            Self::OneCycle => (ONE_CYCLE.0, warm_up.unwrap_or(ONE_CYCLE.1)),
            _ => (0.0, warm_up.unwrap_or(0.0)),
        };
        if done < warm_up {
            return start + (1.0 - start) * done / warm_up;
        }
        let rest = if warm_up < 1.0 { (done - warm_up) / (1.0 - warm_up) } else { 0.0 };
        match self {
            Self::Constant => 1.0,
            Self::Linear => 1.0 - rest,
            Self::Cosine | Self::OneCycle => cosine(rest),
            Self::Step if done < 0.5 => 1.0,
            Self::Step if done < 0.75 => 0.1,
            Self::Step => 0.01,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_begin_turn_and_end_where_they_say() {
        let at = |schedule: Schedule, warm_up, places: [f64; 3]| places.map(|done| schedule.factor(done, warm_up));
        let near = |found: [f64; 3], expected: [f64; 3]| {
            found.iter().zip(expected).for_each(|(found, expected)| assert!((found - expected).abs() < 1e-12, "{found} is not {expected}"));
        };
        near(at(Schedule::Constant, None, [0.0, 0.5, 1.0]), [1.0, 1.0, 1.0]);
        near(at(Schedule::Linear, None, [0.0, 0.25, 1.0]), [1.0, 0.75, 0.0]);
        near(at(Schedule::Cosine, None, [0.0, 0.5, 1.0]), [1.0, 0.5, 0.0]);
        near(at(Schedule::Step, None, [0.49, 0.5, 0.75]), [1.0, 0.1, 0.01]);
        near(at(Schedule::OneCycle, None, [0.0, 0.3, 1.0]), [0.04, 1.0, 0.0]);
        near(at(Schedule::Constant, Some(0.5), [0.0, 0.25, 0.5]), [0.0, 0.5, 1.0]);
        near(at(Schedule::Linear, Some(0.2), [0.1, 0.2, 0.6]), [0.5, 1.0, 0.5]);
    }
}
