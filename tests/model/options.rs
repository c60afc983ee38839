//! What a model imitates, and how.

use std::str::FromStr;

/// The system that a model imitates, where systems differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Windows 7 and earlier.
    Windows7,
    /// Windows 8 and later.
    Windows8,
    /// Wine 8 and 10.
    Wine8,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 3] = [Self::Windows7, Self::Windows8, Self::Wine8];

    /// Whether access lists are enforced. Wine only stores them.
    #[must_use]
    pub fn checks_access(self) -> bool {
        self != Self::Wine8
    }
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |form: &Self| format!("{form:?}") == text;
        let form = Self::ALL.into_iter().find(named);
        form.ok_or_else(|| format!("{text:?} is not one of {:?}", Self::ALL))
    }
}

/// When and where packets are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Only by [`Model::step`], on the thread that calls it.
    Stepped,
    /// At any time, by this number of threads.
    Threads(usize),
}

/// The options of a model.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The seed of everything that the system decides.
    pub seed: u64,
    /// The system to imitate.
    pub form: Form,
    /// When and where packets are delivered.
    pub delivery: Delivery,
    /// Whether `ConnectNamedPipe` makes the server forget a client that opened before it. ReactOS's
    /// `NpListen` does; no page says what Windows does.
    pub listen_forgets_client: bool,
    /// Do only what the facts of the form say, not everything that is legal.
    pub strict: bool,
    /// How many calls in 1,000 fail.
    pub faults: u32,
}

impl Options {
    /// Everything that is legal, without faults, in a form chosen by the seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self {
            seed,
            form: Form::ALL[(seed % 3) as usize],
            delivery: Delivery::Stepped,
            listen_forgets_client: seed / 3 % 2 == 1,
            strict: false,
            faults: 0,
        }
    }
}
