//! `--from`, `--until`, `--only` and `--force`: which stages of a plan a run is about.

use artifact::StageError;
use clap::Args;

use crate::plan::{Forecast, Plan};

/// Which stages a run is about; a matrix stage's name stands for all its variants.
#[derive(Debug, Clone, Default, Args)]
pub struct Selection {
    /// Runs every stage, or with =STAGE that one, whatever is there already
    #[arg(long, value_name = "STAGE", num_args = 0..=1, require_equals = true, default_missing_value = ALL)]
    pub force: Vec<String>,
    /// Only this stage and what follows from it
    #[arg(long, value_name = "STAGE")]
    pub from: Vec<String>,
    /// Only this stage and what it needs
    #[arg(long, value_name = "STAGE")]
    pub until: Vec<String>,
    /// Only this stage
    #[arg(long, value_name = "STAGE")]
    pub only: Vec<String>,
}

/// `--force` without a stage.
const ALL: &str = "*";

/// A selection among the stages of a plan, in its order.
pub struct Selected {
    /// The run is about it.
    pub wanted: Vec<bool>,
    /// It is wanted, or something wanted follows from it.
    pub needed: Vec<bool>,
    /// It runs, whatever the cache holds.
    pub forced: Vec<bool>,
}

impl Selection {
    /// Every stage, whatever is there already.
    pub fn everything() -> Self {
        Self { force: vec![ALL.to_owned()], ..Self::default() }
    }

    /// Finds the stages.
    ///
    /// # Errors
    /// When a name is no stage's.
    pub fn among(&self, plan: &Plan) -> Result<Selected, StageError> {
        let mut wanted = vec![true; plan.stages.len()];
        let narrow = |wanted: &mut Vec<bool>, names: &[String], widen: fn(&Plan, &mut [bool])| -> Result<(), StageError> {
            if !names.is_empty() {
                let mut found = named(plan, names)?;
                widen(plan, &mut found);
                wanted.iter_mut().zip(found).for_each(|(wanted, found)| *wanted &= found);
            }
            Ok(())
        };
        narrow(&mut wanted, &self.from, downstream)?;
        narrow(&mut wanted, &self.until, upstream)?;
        narrow(&mut wanted, &self.only, |_, _| ())?;
        let mut needed = wanted.clone();
        upstream(plan, &mut needed);
        let (all, names): (Vec<_>, Vec<_>) = self.force.iter().cloned().partition(|name| name == ALL);
        let mut forced = if all.is_empty() { named(plan, &names)? } else { vec![true; plan.stages.len()] };
        forced.iter_mut().zip(&wanted).for_each(|(forced, wanted)| *forced &= wanted);
        Ok(Selected { wanted, needed, forced })
    }
}

impl Selected {
    /// Whether there are stages that the run is not about.
    pub fn is_a_part(&self) -> bool {
        self.wanted.contains(&false)
    }

    /// What is taken from stages that the run is not about must be there.
    ///
    /// # Errors
    /// Which is not.
    pub fn check(&self, plan: &Plan, forecasts: &[Forecast]) -> Result<(), StageError> {
        for (taker, stage) in plan.stages.iter().enumerate().filter(|(index, _)| self.wanted[*index]) {
            let is_missing = |from: &usize| !self.wanted[*from] && !matches!(forecasts[*from], Forecast::Cached(_));
            if let Some(from) = stage.upstream().find(is_missing) {
                let (from, taker) = (&plan.stages[from].name, &plan.stages[taker].name);
                let error = StageError::new(format!("`{taker}` takes from `{from}`, which has not run as the file stands now"));
                return Err(error.help(format!("first `--until {from}`, or run without --from and --only")));
            }
        }
        Ok(())
    }
}

/// The stages of these names, and the variants of these stages.
fn named(plan: &Plan, names: &[String]) -> Result<Vec<bool>, StageError> {
    let mut found = vec![false; plan.stages.len()];
    for name in names {
        plan.places(name)?.into_iter().for_each(|index| found[index] = true);
    }
    Ok(found)
}

/// A plan has every stage after those it takes from: one pass goes all the way.
fn downstream(plan: &Plan, found: &mut [bool]) {
    for (index, stage) in plan.stages.iter().enumerate() {
        found[index] |= stage.upstream().any(|from| found[from]);
    }
}

fn upstream(plan: &Plan, found: &mut [bool]) {
    for (index, stage) in plan.stages.iter().enumerate().rev() {
        if found[index] {
            stage.upstream().for_each(|from| found[from] = true);
        }
    }
}
