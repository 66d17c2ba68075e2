//! Apply: K and new data into predictions and reports.
