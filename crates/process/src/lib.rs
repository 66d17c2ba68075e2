//! Process (f): cleaning, splitting, encoding; f itself as fitted parameters.
