//! Medians, percentiles and ratios.

/// Median and percentiles of measured values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) p10: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    pub(crate) count: usize,
}

/// `None` if there are no values.
pub(crate) fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(Spread {
        p10: quantile(&sorted, 0.1)?,
        p50: quantile(&sorted, 0.5)?,
        p90: quantile(&sorted, 0.9)?,
        p99: quantile(&sorted, 0.99)?,
        max: *sorted.last()?,
        count: sorted.len(),
    })
}

/// The median; `None` if there are no values.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    spread(values).map(|spread| spread.p50)
}

/// A quantile of sorted values, by linear interpolation.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    Some(sorted[below] + (sorted[above] - sorted[below]) * place.fract())
}

/// The median over the rounds of `one / other` within a round. Load from other programs slows both
/// values of a round, so the ratio varies less than the values.
pub(crate) fn ratio(one: &[f64], other: &[f64]) -> Option<f64> {
    let ratios: Vec<f64> = one
        .iter()
        .zip(other)
        .filter(|(one, other)| one.is_finite() && **other > 0.0)
        .map(|(one, other)| one / other)
        .collect();
    median(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let spread = spread(&[5.0, 1.0, 2.0, 4.0, 3.0]).unwrap();
        assert_eq!((spread.p50, spread.max), (3.0, 5.0));
        assert!((spread.p10 - 1.4).abs() < 1e-9 && (spread.p90 - 4.6).abs() < 1e-9);
        assert_eq!(median(&[1.0, 2.0]), Some(1.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        // Both were slow in the second round.
        assert_eq!(ratio(&[2.0, 20.0, 2.2], &[1.0, 10.0, 1.0]), Some(2.0));
        assert_eq!(ratio(&[f64::NAN], &[1.0]), None);
    }
}
