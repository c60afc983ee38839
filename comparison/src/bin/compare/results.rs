//! The figures of all contenders, and how ours compare.

use crate::{
    contenders::{Contender, Role},
    loads::Load,
    measure::Figures,
};

#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) contenders: Vec<Contender>,
    pub(crate) rows: Vec<Row>,
}

/// One load, with one cell and one ratio per contender.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) load: Load,
    pub(crate) cells: Vec<Cell>,
    /// Our figure divided by the contender's.
    pub(crate) ratios: Vec<Option<Spread>>,
}

/// A median, or why there is none.
pub(crate) type Cell = Result<f64, String>;

/// The ratios of several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) lowest: f64,
    pub(crate) median: f64,
    pub(crate) highest: f64,
}

impl Results {
    pub(crate) fn new(contenders: &[Contender]) -> Self {
        Self {
            contenders: contenders.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, load: &Load, figures: Vec<Figures>) {
        let ratios = match figures.first() {
            Some(Ok(ours)) => figures
                .iter()
                .map(|theirs| ratios(ours, theirs.as_ref().ok()?))
                .collect(),
            _ => vec![None; figures.len()],
        };
        let cells = figures
            .into_iter()
            .map(|figures| figures.map(median))
            .collect();
        self.rows.push(Row {
            load: load.clone(),
            cells,
            ratios,
        });
    }

    /// How many times better ours is than the best contender of this role; below 1 it is worse. Nothing can be said
    /// if either figure is 0.
    pub(crate) fn ratio(&self, row: &Row, role: Role) -> Option<f64> {
        let ours = row.cells.first()?.as_ref().ok()?;
        let others = self.contenders.iter().zip(&row.cells);
        let figures = others
            .filter(|(contender, _)| contender.role == role)
            .filter_map(|(_, cell)| cell.as_ref().ok());
        let best = if row.load.unit.more_is_better() {
            figures.max_by(|one, other| one.total_cmp(other))
        } else {
            figures.min_by(|one, other| one.total_cmp(other))
        };
        row.load.ratio(*ours, *best?)
    }
}

impl Load {
    /// How many times better `ours` is than `theirs`.
    fn ratio(&self, ours: f64, theirs: f64) -> Option<f64> {
        let (better, worse) = if self.unit.more_is_better() {
            (ours, theirs)
        } else {
            (theirs, ours)
        };
        (better > 0.0 && worse > 0.0).then(|| better / worse)
    }
}

/// Divides our figures by theirs, round by round, so that a round in which the machine was slower does
/// not count. There is no ratio to 0.
fn ratios(ours: &[f64], theirs: &[f64]) -> Option<Spread> {
    let rounds = ours.iter().zip(theirs);
    let ratios = rounds
        .filter(|(_, theirs)| **theirs > 0.0)
        .map(|(ours, theirs)| ours / theirs);
    let ratios: Vec<f64> = ratios.collect();
    Some(Spread {
        lowest: ratios.iter().copied().reduce(f64::min)?,
        highest: ratios.iter().copied().reduce(f64::max)?,
        median: median(ratios),
    })
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => figures[middle],
        _ => (figures[middle - 1] + figures[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{System, contenders, loads};

    /// How ours compares with two others, where less is better.
    fn ratio(ours: f64, others: [f64; 2]) -> Option<f64> {
        let of_role = |contender: &Contender| contender.is_ours() || contender.role == Role::Other;
        let contenders = contenders::of(System::Linux).into_iter().filter(of_role);
        let mut loads = loads::of(System::Linux).into_iter();
        let row = Row {
            load: loads.find(|load| !load.unit.more_is_better())?,
            cells: [ours, others[0], others[1]].map(Ok).into(),
            ratios: Vec::new(),
        };
        Results::new(&contenders.take(3).collect::<Vec<_>>()).ratio(&row, Role::Other)
    }

    #[test]
    fn ours_is_compared_with_the_best_of_the_others() {
        assert_eq!(ratio(4.0, [2.0, 8.0]), Some(0.5));
    }

    #[test]
    fn there_is_no_ratio_to_nothing() {
        assert_eq!(ratio(4.0, [0.0, 8.0]), None);
        assert_eq!(ratio(0.0, [2.0, 8.0]), None);
    }

    #[test]
    fn ours_is_divided_by_theirs_round_by_round() {
        let spread = ratios(&[1.0, 30.0, 2.0], &[2.0, 10.0, 1.0]);
        let expected = Spread {
            lowest: 0.5,
            median: 2.0,
            highest: 3.0,
        };
        assert_eq!(spread, Some(expected));
        assert_eq!(ratios(&[1.0], &[0.0]), None);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
