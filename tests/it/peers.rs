//! What is known of the other side.

use pipe_server::UserId;
use proptest::{prelude::*, test_runner::Config};

fn user() -> impl Strategy<Value = UserId> {
    #[cfg(unix)]
    return any::<u32>().prop_map(UserId::Uid);
    #[cfg(windows)]
    return "S-1-(0|[1-9][0-9]{0,8})(-(0|[1-9][0-9]{0,8})){1,15}".prop_map(UserId::Sid);
}

proptest! {
    #![proptest_config(Config {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..Config::default()
    })]

    #[test]
    fn a_user_is_displayed_as_it_is_parsed(user in user()) {
        prop_assert_eq!(user.to_string().parse(), Ok(user));
    }
}
