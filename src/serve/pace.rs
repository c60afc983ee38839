//! Decides when to ask the system for a client's next request, from how soon the earlier ones came.

/// Whether asking for a request that is not there costs a system call of its own. On Windows the question starts the
/// read that is needed anyway.
const ASKING_COSTS: bool = cfg!(not(windows));

/// After this many requests in a row that were there once the reply before them was sent, the next one is looked for
/// before the reply: the client may have begun to send ahead.
const PROMPT: u32 = 4;

/// After this many requests in a row that had not come when they were asked for, other tasks run first. Often the next
/// one has come by then, and asking too soon wastes a system call.
const LATE: u32 = 64;

/// After other tasks ran first this many times in a row and the request had not come even then, it is asked for at once
/// again.
const IN_VAIN: u32 = 8;

/// After other tasks ran first this many times, the next request is asked for at once, as the client may have become
/// faster.
const AT_ONCE_AFTER: u32 = 64;

/// How one client sends its requests.
#[derive(Default)]
pub(super) struct Pace {
    /// Whether the last request was at hand before the reply to the one before it was sent.
    was_at_hand: bool,
    /// Whether the client seems to wait for each reply.
    in_lockstep: bool,
    /// How many requests in a row were there when they were asked for at once after a reply.
    prompt: u32,
    /// How many in a row were not, up to `LATE`.
    late: u32,
    /// How many were asked for after other tasks had run, since one was asked for at once.
    gave_way: u32,
    /// How many in a row were not there even then.
    in_vain: u32,
}

impl Pace {
    /// Whether to look for the next request before the reply is sent.
    pub(super) fn may_send_ahead(&self) -> bool {
        !self.in_lockstep
    }

    /// Records whether the next request was found before the reply was sent.
    pub(super) fn looked_ahead(&mut self, found: bool) {
        if found {
            self.was_at_hand = true;
            self.in_lockstep = false;
        } else {
            self.in_lockstep = !self.was_at_hand;
        }
    }

    /// Whether other tasks should run, now that the reply is sent, before the next request is asked for.
    pub(super) fn gives_way(&self) -> bool {
        ASKING_COSTS && self.in_lockstep && self.late == LATE && self.gave_way < AT_ONCE_AFTER
    }

    /// Records whether the next request was there when it was asked for after the reply, or had to be waited for.
    pub(super) fn asked(&mut self, gave_way: bool, was_there: bool) {
        self.was_at_hand = false;
        match (gave_way, was_there) {
            (true, true) => {
                self.gave_way += 1;
                self.in_vain = 0;
            }
            (true, false) => {
                self.gave_way += 1;
                self.in_vain += 1;
                if self.in_vain == IN_VAIN {
                    self.late = 0;
                    self.in_vain = 0;
                }
            }
            (false, true) => {
                self.gave_way = 0;
                self.late = 0;
                self.in_vain = 0;
                self.prompt += 1;
                if self.prompt == PROMPT {
                    self.prompt = 0;
                    self.in_lockstep = false;
                }
            }
            (false, false) => {
                self.gave_way = 0;
                self.late = LATE.min(self.late + 1);
                self.prompt = 0;
            }
        }
    }

    /// Records that a request arrived while another one was being answered.
    pub(super) fn sent_ahead(&mut self) {
        self.in_lockstep = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that waits for each reply, and whose requests were late this many times.
    fn late(times: u32) -> Pace {
        let mut pace = Pace::default();
        pace.looked_ahead(false);
        for _ in 0..times {
            assert!(!pace.gives_way());
            pace.asked(false, false);
        }
        pace
    }

    #[test]
    fn a_client_that_waits_for_replies_is_not_asked_before_they_are_sent() {
        let mut pace = Pace::default();
        assert!(pace.may_send_ahead());
        pace.looked_ahead(false);
        assert!(!pace.may_send_ahead());
        pace.sent_ahead();
        assert!(pace.may_send_ahead());
    }

    #[test]
    fn a_client_that_sent_ahead_may_do_so_again() {
        let mut pace = Pace::default();
        pace.looked_ahead(true);
        pace.looked_ahead(false);
        assert!(pace.may_send_ahead());
        pace.asked(false, false);
        pace.looked_ahead(false);
        assert!(!pace.may_send_ahead());
    }

    #[test]
    fn a_client_that_is_prompt_may_send_ahead() {
        let mut pace = late(1);
        for _ in 0..PROMPT {
            assert!(!pace.may_send_ahead());
            pace.asked(false, true);
        }
        assert!(pace.may_send_ahead());
    }

    #[cfg(not(windows))]
    #[test]
    fn others_run_before_a_late_client_is_asked() {
        let mut pace = late(LATE);
        for _ in 0..AT_ONCE_AFTER {
            assert!(pace.gives_way());
            pace.asked(true, true);
        }
        assert!(!pace.gives_way());
        pace.asked(false, false);
        assert!(pace.gives_way());
        assert!(!pace.may_send_ahead());
    }

    #[cfg(not(windows))]
    #[test]
    fn a_client_that_becomes_prompt_is_asked_at_once() {
        let mut pace = late(LATE);
        for _ in 0..AT_ONCE_AFTER {
            pace.asked(true, true);
        }
        pace.asked(false, true);
        assert!(!pace.gives_way());
    }

    #[cfg(not(windows))]
    #[test]
    fn others_stop_running_first_if_that_is_in_vain() {
        let mut pace = late(LATE);
        for _ in 0..IN_VAIN {
            assert!(pace.gives_way());
            pace.asked(true, false);
        }
        assert!(!pace.gives_way());
    }
}
