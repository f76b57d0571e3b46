//! Says why training has ended before its last step, and which validation was the best. Pure.

use proto::control::EarlyStop;
use proto::validation::EarlyStopping;

use super::units;

/// `the validation loss has not improved in 3 validations (the best is 1.2345, after step 30)`.
pub fn reason(stop: &EarlyStop, rule: EarlyStopping) -> String {
    let EarlyStop { without_improvement, best_step, best_loss } = *stop;
    let by = if rule.min_delta > 0.0 { format!(" by more than {}", rule.min_delta) } else { String::new() };
    let times = units::plural(without_improvement, "validation");
    let best = match best_step {
        0 => "it never was a number".to_owned(),
        step => format!("the best is {best_loss:.4}, after step {step}"),
    };
    format!("the validation loss has not improved{by} in {times} ({best})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_names_how_often_by_how_much_and_the_best() {
        let stop = EarlyStop { without_improvement: 3, best_step: 30, best_loss: 1.23456 };
        let rule = EarlyStopping { patience: 3, min_delta: 0.0 };
        assert_eq!(
            reason(&stop, rule),
            "the validation loss has not improved in 3 validations (the best is 1.2346, after step 30)"
        );
        assert_eq!(
            reason(&EarlyStop { without_improvement: 1, ..stop }, EarlyStopping { min_delta: 0.01, ..rule }),
            "the validation loss has not improved by more than 0.01 in 1 validation (the best is 1.2346, after step 30)"
        );
        let none = EarlyStop { without_improvement: 3, best_step: 0, best_loss: f64::NAN };
        assert!(reason(&none, rule).ends_with("in 3 validations (it never was a number)"));
    }
}
