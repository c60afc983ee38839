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

/// One load, with one cell per contender.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) load: Load,
    pub(crate) cells: Vec<Cell>,
}

/// A median, or why there is none.
pub(crate) type Cell = Result<f64, String>;

impl Results {
    pub(crate) fn new(contenders: &[Contender]) -> Self {
        Self {
            contenders: contenders.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, load: &Load, figures: Vec<Figures>) {
        let cells = figures
            .into_iter()
            .map(|figures| figures.map(median))
            .collect();
        self.rows.push(Row { load: *load, cells });
    }

    /// How many times better ours is than the best contender of this role; below 1 it is worse.
    pub(crate) fn ratio(&self, row: &Row, role: Role) -> Option<f64> {
        let ours = row.cells.first()?.as_ref().ok()?;
        let others = self.contenders.iter().zip(&row.cells);
        others
            .filter(|(contender, _)| contender.role == role)
            .filter_map(|(_, cell)| row.load.ratio(*ours, *cell.as_ref().ok()?))
            .min_by(f64::total_cmp)
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

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
