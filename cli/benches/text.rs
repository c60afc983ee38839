//! The cost of `--encoding auto` per message: what the encoding is, and a text in it.
//!
//! ```sh
//! cargo bench -p pipe-server-cli
//! ```

use divan::{Bencher, counter::BytesCount};
use pipe_server_cli::text::{Encoding, Form};

fn main() {
    divan::main();
}

const UTF_8: Form = Form {
    wide: false,
    terminated: true,
};
const UTF_16: Form = Form {
    wide: true,
    terminated: true,
};

#[divan::bench(args = [64, 4096])]
fn detect_utf_8(bencher: Bencher<'_, '_>, length: usize) {
    detect(bencher, UTF_8, length);
}

#[divan::bench(args = [64, 4096])]
fn detect_utf_16(bencher: Bencher<'_, '_>, length: usize) {
    detect(bencher, UTF_16, length);
}

fn detect(bencher: Bencher<'_, '_>, form: Form, length: usize) {
    let message = form.encode(&"a".repeat(length));
    bencher
        .counter(BytesCount::of_slice(&message))
        .bench(|| Form::of(divan::black_box(&message), Encoding::Auto));
}

#[divan::bench(args = [64, 4096])]
fn encode_utf_8(bencher: Bencher<'_, '_>, length: usize) {
    encode(bencher, UTF_8, length);
}

#[divan::bench(args = [64, 4096])]
fn encode_utf_16(bencher: Bencher<'_, '_>, length: usize) {
    encode(bencher, UTF_16, length);
}

fn encode(bencher: Bencher<'_, '_>, form: Form, length: usize) {
    let text = "a".repeat(length);
    bencher
        .counter(BytesCount::of_str(&text))
        .bench(|| form.encode(divan::black_box(&text)));
}
