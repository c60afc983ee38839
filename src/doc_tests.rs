//! The examples in the project's pages, which are compiled with the doc tests.

#![doc = include_str!("../README.md")]
#![doc = include_str!("../docs/migrating.md")]
#![cfg_attr(target_os = "linux", doc = include_str!("../docs/systemd.md"))]
#![cfg_attr(
    feature = "json",
    doc = include_str!("../docs/recipes.md"),
    doc = include_str!("../docs/typed-messages.md")
)]
