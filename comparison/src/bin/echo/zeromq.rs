//! ZeroMQ's REP socket: one loop that receives a request and answers it, as in the first example of its guide.

pub(crate) fn serve(address: &str) -> Result<(), Box<dyn std::error::Error>> {
    let context = zmq::Context::new();
    let socket = context.socket(zmq::REP)?;
    socket.bind(&format!("ipc://{address}"))?;
    crate::announce(address)?;
    loop {
        // Sends the received message back without a copy.
        let message = socket.recv_msg(0)?;
        socket.send(message, 0)?;
    }
}
