//! The pipes of a model: instances, their queues, and the operations in flight.
//!
//! The rules are those of the named pipe file system, as observed by Wine's conformance tests and
//! implemented by ReactOS's `npfs`.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::c_void,
    ptr,
};

use windows_sys::Win32::{
    Foundation::{
        ERROR_ACCESS_DENIED, ERROR_BROKEN_PIPE, ERROR_FILE_NOT_FOUND, ERROR_HANDLES_CLOSED,
        ERROR_INVALID_PARAMETER, ERROR_MORE_DATA, ERROR_NO_DATA, ERROR_NO_SYSTEM_RESOURCES,
        ERROR_NOT_FOUND, ERROR_OPERATION_ABORTED, ERROR_PIPE_BUSY, ERROR_PIPE_CONNECTED,
        ERROR_PIPE_LISTENING, ERROR_PIPE_NOT_CONNECTED, ERROR_SUCCESS,
    },
    Storage::FileSystem::{FILE_APPEND_DATA, FILE_GENERIC_READ, FILE_GENERIC_WRITE},
    System::{IO::OVERLAPPED, WindowsProgramming::FILE_SKIP_COMPLETION_PORT_ON_SUCCESS},
};

use super::{
    options::{Form, Options},
    security::{Blocks, Descriptor, Quality, Token, User},
};

/// The low bits of a handle's number. The rest identifies its world.
pub(super) const WORLD_BITS: u32 = 20;

/// How a connect in flight may fail.
const CONNECT_FAULTS: &[u32] = &[
    ERROR_BROKEN_PIPE,
    ERROR_NO_SYSTEM_RESOURCES,
    ERROR_OPERATION_ABORTED,
];

/// `OVERLAPPED::Internal` while an operation is pending.
pub(super) const STATUS_PENDING: usize = 0x103;

#[derive(Debug)]
pub(super) struct State {
    pub(super) options: Options,
    pub(super) rng: fastrand::Rng,
    pub(super) token: Token,
    pub(super) blocks: Blocks,
    pub(super) objects: BTreeMap<usize, Object>,
    pub(super) stopping: bool,
    /// The error of the next `WriteFile`.
    pub(super) next_write_fails: Option<u32>,
    /// The number of the latest handle or object.
    next: usize,
    pipes: BTreeMap<String, Pipe>,
    instances: BTreeMap<usize, Instance>,
    /// What was sent to the ports and not taken so far.
    packets: Vec<Packet>,
}

// SAFETY: its pointers come from callers, which let any thread of the system use them.
unsafe impl Send for State {}

/// The object that a handle refers to.
#[derive(Debug)]
pub(super) enum Object {
    File(File),
    Event { signaled: bool },
    Port,
    Token(Token),
}

/// A handle to one end of an instance.
#[derive(Clone, Debug)]
pub(super) struct File {
    instance: usize,
    side: Side,
    pub(super) rights: u32,
    pub(super) reads_messages: bool,
    pub(super) modes: u32,
    bound: Option<Bound>,
}

/// The port that a handle is bound to, and the handle's key there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// The port of the library, whose threads call this function.
    Library {
        key: *const c_void,
        completed: Completed,
    },
    /// A port with a handle, from which packets are taken with `GetQueuedCompletionStatus`.
    Port { port: usize, key: usize },
}

/// What the library does with a packet: its arguments are the key, the `OVERLAPPED`, the error code
/// and the number of bytes transferred.
pub(super) type Completed = unsafe fn(*const c_void, *mut OVERLAPPED, u32, usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Server,
    Client,
}

/// A served name, and how it was created.
#[derive(Debug)]
struct Pipe {
    descriptor: Descriptor,
    limit: u32,
    keeps_messages: bool,
    instances: Vec<usize>,
}

#[derive(Debug)]
struct Instance {
    name: String,
    state: Connection,
    server: Option<usize>,
    client: Option<usize>,
    connects: Vec<Operation>,
    to_server: Queue,
    to_client: Queue,
    /// How the client's end was opened.
    quality: Option<Quality>,
    /// The client's token, if the server has it.
    client_token: Option<Token>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    Listening,
    Connected,
    Closing,
    Disconnected,
}

/// One direction: messages waiting for reads, or reads waiting for messages.
#[derive(Debug, Default)]
struct Queue {
    quota: usize,
    messages: VecDeque<Message>,
    reads: VecDeque<Operation>,
}

#[derive(Debug)]
struct Message {
    data: Data,
    /// The number of bytes already read.
    read: usize,
    /// The token of its sender, for the server that reads it.
    sender: Option<Token>,
}

#[derive(Debug)]
enum Data {
    /// The system's copy.
    Copied(Vec<u8>),
    /// In the buffer of a pending write.
    Pending(Operation),
}

/// An operation in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    file: usize,
    overlapped: *mut OVERLAPPED,
    buffer: *mut u8,
    length: usize,
    bound: Option<Bound>,
}

/// The state of an operation when its call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Over { code: u32, length: usize },
    Pending,
}

/// The end of an operation.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bound: Bound,
    pub(super) overlapped: *mut OVERLAPPED,
    pub(super) code: u32,
    pub(super) length: usize,
}

// SAFETY: as for `State`.
unsafe impl Send for Packet {}

impl State {
    pub(super) fn new(world: usize, options: Options) -> Self {
        Self {
            options,
            rng: fastrand::Rng::with_seed(options.seed),
            token: Token::new(User::PLAIN),
            blocks: Blocks::default(),
            objects: BTreeMap::new(),
            stopping: false,
            next_write_fails: None,
            next: world << WORLD_BITS,
            pipes: BTreeMap::new(),
            instances: BTreeMap::new(),
            packets: Vec::new(),
        }
    }

    pub(super) fn check_empty(&self) {
        assert!(self.objects.is_empty(), "never closed: {:?}", self.objects);
        assert!(self.packets.is_empty(), "never taken: {:?}", self.packets);
        assert!(self.instances.is_empty(), "leaked: {:?}", self.instances);
        assert!(self.pipes.is_empty(), "leaked: {:?}", self.pipes);
        assert!(self.blocks.is_empty(), "never freed: {:?}", self.blocks);
    }

    /// Whether an optional event happens, with a probability of 1 in `n`. Never in strict mode.
    pub(super) fn may(&mut self, n: u32) -> bool {
        !self.options.strict && self.rng.u32(..n) == 0
    }

    /// The error of an injected fault, if this call is to fail.
    pub(super) fn fault(&mut self, errors: &[u32]) -> Option<u32> {
        let fails = self.rng.u32(..1000) < self.options.faults;
        fails.then(|| errors[self.rng.usize(..errors.len())])
    }

    fn number(&mut self) -> usize {
        self.next += 4;
        self.next
    }

    pub(super) fn add(&mut self, object: Object) -> usize {
        let handle = self.number();
        self.objects.insert(handle, object);
        handle
    }

    pub(super) fn file(&mut self, handle: usize) -> &mut File {
        match self.objects.get_mut(&handle) {
            Some(Object::File(file)) => file,
            other => panic!("{handle:#x} is not an open pipe: {other:?}"),
        }
    }

    fn instance(&mut self, handle: usize) -> (&mut Instance, Side) {
        let (number, side) = {
            let file = self.file(handle);
            (file.instance, file.side)
        };
        match self.instances.get_mut(&number) {
            Some(instance) => (instance, side),
            None => unreachable!("an open end keeps its instance alive"),
        }
    }

    pub(super) fn connection(&mut self, handle: usize) -> Connection {
        self.instance(handle).0.state
    }

    /// The number of bytes that an end can read.
    pub(super) fn unread(&mut self, handle: usize) -> usize {
        let (instance, side) = self.instance(handle);
        let queue = match side {
            Side::Server => &instance.to_server,
            Side::Client => &instance.to_client,
        };
        queue.messages.iter().map(Message::left).sum()
    }

    pub(super) fn owner(&mut self, handle: usize) -> Option<String> {
        let name = self.instance(handle).0.name.clone();
        self.pipes.get(&name)?.descriptor.owner.clone()
    }

    /// The token of a server's client, if the server can identify it yet.
    pub(super) fn client_token(&mut self, handle: usize) -> Option<Token> {
        self.instance(handle).0.client_token.clone()
    }

    /// `CreateNamedPipe`: a handle or an error.
    pub(super) fn create(&mut self, pipe: NewInstance) -> Result<usize, u32> {
        let name = pipe.name.to_lowercase();
        let wine = !self.options.form.checks_access();
        if let Some(existing) = self.pipes.get(&name) {
            if pipe.first && !wine {
                return Err(ERROR_ACCESS_DENIED);
            }
            // The rights that a duplex instance requests, including the one to create instances.
            let rights = FILE_GENERIC_READ | FILE_GENERIC_WRITE;
            if !wine && !existing.descriptor.allows(&self.token, rights) {
                return Err(ERROR_ACCESS_DENIED);
            }
            if existing.limit < 255 && existing.instances.len() >= existing.limit as usize {
                return Err(ERROR_PIPE_BUSY);
            }
        }
        let number = self.number();
        let mut descriptor = pipe
            .descriptor
            .unwrap_or_else(|| Descriptor::default_of(&self.token));
        let owner = &mut descriptor.owner;
        owner.get_or_insert_with(|| self.token.user.owner.to_owned());
        self.pipes
            .entry(name.clone())
            .or_insert(Pipe {
                descriptor,
                limit: pipe.limit,
                keeps_messages: pipe.keeps_messages,
                instances: Vec::new(),
            })
            .instances
            .push(number);
        let handle = self.add(Object::File(File {
            instance: number,
            side: Side::Server,
            rights: FILE_GENERIC_READ | FILE_GENERIC_WRITE,
            reads_messages: pipe.reads_messages,
            modes: 0,
            bound: None,
        }));
        let queue = |quota| Queue {
            quota,
            ..Queue::default()
        };
        self.instances.insert(
            number,
            Instance {
                name,
                state: Connection::Listening,
                server: Some(handle),
                client: None,
                connects: Vec::new(),
                to_server: queue(pipe.in_quota),
                to_client: queue(pipe.out_quota),
                quality: None,
                client_token: None,
            },
        );
        Ok(handle)
    }

    /// `CreateFile` of a pipe: a handle or an error.
    pub(super) fn open(&mut self, name: &str, rights: u32, quality: Quality) -> Result<usize, u32> {
        let pipe = self.pipes.get(&name.to_lowercase());
        let pipe = pipe.ok_or(ERROR_FILE_NOT_FOUND)?;
        if self.options.form.checks_access() {
            // ReactOS's NpCreateClientEnd removes the right to create instances from the requested
            // rights.
            let rights = super::security::mapped(rights) & !FILE_APPEND_DATA;
            if !pipe.descriptor.allows(&self.token, rights) {
                return Err(ERROR_ACCESS_DENIED);
            }
        }
        let listening: Vec<usize> = pipe
            .instances
            .iter()
            .copied()
            .filter(|number| self.instances[number].state == Connection::Listening)
            .collect();
        if listening.is_empty() {
            return Err(ERROR_PIPE_BUSY);
        }
        // The system may choose any of them.
        let number = listening[self.rng.usize(..listening.len())];
        let handle = self.add(Object::File(File {
            instance: number,
            side: Side::Client,
            rights: super::security::mapped(rights),
            reads_messages: false,
            modes: 0,
            bound: None,
        }));
        let token = self.token.at(quality.level);
        let instance = self.instances.get_mut(&number).expect("it listens");
        instance.state = Connection::Connected;
        instance.client = Some(handle);
        instance.quality = Some(quality);
        instance.client_token = (!quality.is_dynamic).then_some(token);
        for connect in std::mem::take(&mut instance.connects) {
            self.end(connect, ERROR_SUCCESS, 0);
        }
        Ok(handle)
    }

    /// `SetNamedPipeHandleState`.
    pub(super) fn set_read_mode(&mut self, handle: usize, messages: bool) -> u32 {
        let (instance, side) = self.instance(handle);
        if instance.state == Connection::Disconnected && side == Side::Client {
            return ERROR_PIPE_NOT_CONNECTED;
        }
        if messages && !self.keeps_messages(handle) {
            return ERROR_INVALID_PARAMETER;
        }
        self.file(handle).reads_messages = messages;
        ERROR_SUCCESS
    }

    /// Whether a handle's pipe has the message type.
    fn keeps_messages(&mut self, handle: usize) -> bool {
        let name = self.instance(handle).0.name.clone();
        self.pipes.get(&name).is_none_or(|pipe| pipe.keeps_messages)
    }

    /// Prepares an operation on a handle.
    pub(super) fn operation(
        &mut self,
        handle: usize,
        overlapped: *mut OVERLAPPED,
        buffer: *mut u8,
        length: usize,
    ) -> Operation {
        let file = self.file(handle);
        let operation = Operation {
            file: handle,
            overlapped,
            buffer,
            length,
            bound: file.bound,
        };
        // SAFETY: the OVERLAPPED is borrowed until the operation completes.
        let event = unsafe {
            (*overlapped).Internal = STATUS_PENDING;
            (*overlapped).InternalHigh = 0;
            (*overlapped).hEvent
        };
        self.signal(event.addr(), false);
        operation
    }

    /// Turns the state of an operation into what its call returns.
    pub(super) fn settle(&mut self, operation: Operation, outcome: Outcome) -> Outcome {
        let Outcome::Over { code, length } = outcome else {
            return outcome;
        };
        let modes = self.file(operation.file).modes;
        let skips = modes & FILE_SKIP_COMPLETION_PORT_ON_SUCCESS != 0;
        let bound = operation.bound.is_some();
        match code {
            ERROR_SUCCESS if bound && (!skips || self.may(4)) => {
                self.end(operation, code, length);
                // Without skip mode the call returns success and still queues a completion.
                if skips { Outcome::Pending } else { outcome }
            }
            ERROR_MORE_DATA if bound && !skips => {
                self.end(operation, code, length);
                outcome
            }
            ERROR_MORE_DATA if bound && self.options.form == Form::Windows8 => {
                self.end(operation, code, length);
                Outcome::Pending
            }
            ERROR_SUCCESS | ERROR_MORE_DATA => {
                self.report(&operation, code, length);
                outcome
            }
            // A call that fails at once queues no completion.
            code => {
                // SAFETY: as in `operation`.
                unsafe { (*operation.overlapped).Internal = status_of(code) };
                outcome
            }
        }
    }

    /// `ConnectNamedPipe`.
    pub(super) fn connect(&mut self, operation: Operation) -> Outcome {
        let forgets = self.options.listen_forgets_client;
        let (instance, _) = self.instance(operation.file);
        if forgets {
            instance.client_token = None;
        }
        let code = match instance.state {
            Connection::Connected => ERROR_PIPE_CONNECTED,
            Connection::Closing => ERROR_NO_DATA,
            Connection::Listening | Connection::Disconnected => {
                instance.state = Connection::Listening;
                instance.connects.push(operation);
                if let Some(code) = self.fault(CONNECT_FAULTS) {
                    self.fail_connects(code);
                }
                return Outcome::Pending;
            }
        };
        Outcome::Over { code, length: 0 }
    }

    /// Ends every connect in flight with an error. The instances still listen, as after a cancelled
    /// connect. Returns the number of connects.
    pub(super) fn fail_connects(&mut self, code: u32) -> usize {
        let instances = self.instances.values_mut();
        let ended: Vec<_> = instances
            .flat_map(|instance| instance.connects.drain(..))
            .collect();
        for &connect in &ended {
            self.end(connect, code, 0);
        }
        ended.len()
    }

    /// `ReadFile`.
    pub(super) fn read(&mut self, operation: Operation) -> Outcome {
        let reads_messages = self.file(operation.file).reads_messages;
        let (instance, side) = self.instance(operation.file);
        let over = |code, length| Outcome::Over { code, length };
        match instance.state {
            Connection::Listening => return over(ERROR_PIPE_LISTENING, 0),
            Connection::Disconnected => return over(ERROR_PIPE_NOT_CONNECTED, 0),
            Connection::Connected | Connection::Closing => {}
        }
        let state = instance.state;
        let queue = match side {
            Side::Server => &mut instance.to_server,
            Side::Client => &mut instance.to_client,
        };
        if queue.messages.is_empty() {
            if state == Connection::Closing {
                return over(ERROR_BROKEN_PIPE, 0);
            }
            queue.reads.push_back(operation);
            return Outcome::Pending;
        }
        let mut length = 0;
        let mut code = ERROR_SUCCESS;
        let mut written = Vec::new();
        while let Some(message) = queue.messages.front_mut() {
            length += message.copy_to(&operation, length);
            if let Some(sender) = message.sender.take() {
                instance.client_token = Some(sender);
            }
            if message.left() > 0 {
                if reads_messages {
                    code = ERROR_MORE_DATA;
                }
                break;
            }
            let message = queue.messages.pop_front().expect("it is there");
            written.extend(message.write());
            if reads_messages {
                break;
            }
        }
        scribble(&operation, length);
        for write in written {
            self.end(write, ERROR_SUCCESS, write.length);
        }
        self.copy_stalled_writes(operation.file);
        over(code, length)
    }

    /// `WriteFile`.
    pub(super) fn write(&mut self, operation: Operation) -> Outcome {
        let (instance, side) = self.instance(operation.file);
        let over = |code, length| Outcome::Over { code, length };
        match instance.state {
            Connection::Listening => return over(ERROR_PIPE_LISTENING, 0),
            Connection::Disconnected => return over(ERROR_PIPE_NOT_CONNECTED, 0),
            Connection::Closing => return over(ERROR_NO_DATA, 0),
            Connection::Connected => {}
        }
        let reader = match side {
            Side::Server => instance.client,
            Side::Client => instance.server,
        };
        let reader = reader.expect("both ends of a connected instance are open");
        let reads_messages = self.file(reader).reads_messages;
        if operation.length == 0 && !self.keeps_messages(operation.file) {
            return over(ERROR_SUCCESS, 0);
        }
        let mut message = Message {
            data: Data::Pending(operation),
            read: 0,
            sender: self.sender(operation.file),
        };
        while let Some(read) = self.queue_from(operation.file).reads.pop_front() {
            if let Some(sender) = message.sender.take() {
                self.instance(operation.file).0.client_token = Some(sender);
            }
            let length = message.copy_to(&read, 0);
            scribble(&read, length);
            let cut = message.left() > 0;
            let code = match cut && reads_messages {
                true => ERROR_MORE_DATA,
                false => ERROR_SUCCESS,
            };
            self.end(read, code, length);
            if !cut {
                return over(ERROR_SUCCESS, operation.length);
            }
        }
        let queue = self.queue_from(operation.file);
        let fits = message.left() <= queue.free();
        let stalled = queue.messages.iter().any(|message| message.is_pending());
        if fits && !stalled || message.left() == 0 {
            message.copy();
            queue.messages.push_back(message);
            return over(ERROR_SUCCESS, operation.length);
        }
        queue.messages.push_back(message);
        Outcome::Pending
    }

    /// The token that a message written on this handle takes to its reader.
    fn sender(&mut self, handle: usize) -> Option<Token> {
        let token = self.token.clone();
        match self.instance(handle) {
            (instance, Side::Client) => {
                let quality = instance.quality.filter(|quality| quality.is_dynamic)?;
                Some(token.at(quality.level))
            }
            (_, Side::Server) => None,
        }
    }

    /// `CancelIoEx`: with no `OVERLAPPED`, everything in flight on the handle.
    pub(super) fn cancel(&mut self, handle: usize, overlapped: *const OVERLAPPED) -> u32 {
        let meant = |operation: &Operation| {
            operation.file == handle
                && (overlapped.is_null() || ptr::eq(operation.overlapped, overlapped))
        };
        let (instance, _) = self.instance(handle);
        let (mut cancelled, kept): (Vec<_>, _) = instance.connects.drain(..).partition(meant);
        instance.connects = kept;
        for queue in [&mut instance.to_server, &mut instance.to_client] {
            let (now, later): (Vec<_>, Vec<_>) = queue.reads.drain(..).partition(meant);
            queue.reads = later.into();
            cancelled.extend(now);
            // A write that was partly read is cancelled with the rest of its message.
            queue.messages.retain(|message| match message.data {
                Data::Pending(write) if meant(&write) => {
                    cancelled.push(write);
                    false
                }
                _ => true,
            });
        }
        if cancelled.is_empty() {
            return ERROR_NOT_FOUND;
        }
        for operation in cancelled {
            self.end(operation, ERROR_OPERATION_ABORTED, 0);
        }
        ERROR_SUCCESS
    }

    /// `DisconnectNamedPipe`.
    pub(super) fn disconnect(&mut self, handle: usize) -> u32 {
        let (instance, _) = self.instance(handle);
        match instance.state {
            Connection::Listening => return ERROR_PIPE_LISTENING,
            Connection::Disconnected => return ERROR_PIPE_NOT_CONNECTED,
            Connection::Connected | Connection::Closing => {}
        }
        instance.state = Connection::Disconnected;
        instance.client_token = None;
        let client = instance.client.take();
        let name = instance.name.clone();
        let mut ended = Vec::new();
        for queue in [&mut instance.to_server, &mut instance.to_client] {
            ended.extend(queue.reads.drain(..));
            ended.extend(queue.messages.drain(..).filter_map(Message::write));
        }
        if let Some(client) = client {
            // The client keeps a disconnected end; the server's end can serve the next client.
            let number = self.number();
            self.instances
                .insert(number, Instance::disconnected(name, client));
            self.file(client).instance = number;
        }
        for operation in ended {
            self.end(operation, ERROR_PIPE_NOT_CONNECTED, 0);
        }
        ERROR_SUCCESS
    }

    /// `CloseHandle`.
    pub(super) fn close(&mut self, handle: usize) {
        match self.objects.get(&handle) {
            Some(Object::File(_)) => self.close_end(handle),
            Some(_) => {}
            None => panic!("{handle:#x} is not open"),
        }
        self.objects.remove(&handle);
    }

    fn close_end(&mut self, handle: usize) {
        let wine = self.options.form == Form::Wine8;
        // ReactOS's file system reports the first; Windows may cancel the operation before.
        let own_code = if wine || self.rng.bool() {
            ERROR_BROKEN_PIPE
        } else {
            ERROR_OPERATION_ABORTED
        };
        let cancels_writes = wine || self.may(2);
        let file = self.file(handle).clone();
        let (instance, side) = self.instance(handle);
        let mut ended = Vec::new();
        for connect in instance.connects.drain(..) {
            ended.push((connect, if wine { ERROR_HANDLES_CLOSED } else { own_code }));
        }
        let (inbound, outbound) = match side {
            Side::Server => (&mut instance.to_server, &mut instance.to_client),
            Side::Client => (&mut instance.to_client, &mut instance.to_server),
        };
        ended.extend(inbound.reads.drain(..).map(|read| (read, own_code)));
        // Unread messages to this end are discarded; messages from this end stay readable.
        let unread = inbound.messages.drain(..).filter_map(Message::write);
        ended.extend(unread.map(|write| (write, ERROR_BROKEN_PIPE)));
        ended.extend(
            outbound
                .reads
                .drain(..)
                .map(|read| (read, ERROR_BROKEN_PIPE)),
        );
        if cancels_writes {
            outbound.messages.retain(|message| match message.data {
                Data::Pending(write) => {
                    ended.push((write, own_code));
                    false
                }
                Data::Copied(_) => true,
            });
        }
        match side {
            Side::Server => instance.server = None,
            Side::Client => instance.client = None,
        }
        if instance.state == Connection::Connected {
            instance.state = Connection::Closing;
        }
        if instance.server.is_none() && instance.client.is_none() {
            // Both ends are closed, so nothing can be read any more.
            for queue in [&mut instance.to_server, &mut instance.to_client] {
                let unread = queue.messages.drain(..).filter_map(Message::write);
                ended.extend(unread.map(|write| (write, ERROR_BROKEN_PIPE)));
            }
            self.forget(file.instance);
        } else if side == Side::Server && wine {
            // Wine removes a name with its last server end, Windows with its last end of either
            // side (ReactOS's NpDeleteCcb).
            self.unlist(file.instance);
        }
        for (operation, code) in ended {
            self.end(operation, code, 0);
        }
    }

    fn forget(&mut self, number: usize) {
        self.unlist(number);
        self.instances.remove(&number);
    }

    fn unlist(&mut self, number: usize) {
        let name = &self.instances[&number].name;
        if let Some(pipe) = self.pipes.get_mut(name) {
            pipe.instances.retain(|&instance| instance != number);
            if pipe.instances.is_empty() {
                self.pipes.remove(name);
            }
        }
    }

    /// The queue for messages written on this handle.
    fn queue_from(&mut self, handle: usize) -> &mut Queue {
        let (instance, side) = self.instance(handle);
        match side {
            Side::Server => &mut instance.to_client,
            Side::Client => &mut instance.to_server,
        }
    }

    /// Completes pending writes for which the queue now has room.
    fn copy_stalled_writes(&mut self, reader: usize) {
        if self.may(2) {
            return;
        }
        let (instance, side) = self.instance(reader);
        let queue = match side {
            Side::Server => &mut instance.to_server,
            Side::Client => &mut instance.to_client,
        };
        let mut ended = Vec::new();
        let mut free = queue.free();
        for message in &mut queue.messages {
            if let Data::Pending(write) = message.data {
                if message.left() > free {
                    break;
                }
                free -= message.left();
                message.copy();
                ended.push(write);
            }
        }
        for write in ended {
            self.end(write, ERROR_SUCCESS, write.length);
        }
    }

    /// Ends a pending operation.
    fn end(&mut self, operation: Operation, code: u32, length: usize) {
        self.report(&operation, code, length);
        let Some(bound) = operation.bound else { return };
        self.packets.push(Packet {
            bound,
            overlapped: operation.overlapped,
            code,
            length,
        });
    }

    /// Records an operation's result in its OVERLAPPED, and signals its event.
    fn report(&mut self, operation: &Operation, code: u32, length: usize) {
        // SAFETY: the OVERLAPPED is borrowed until this point.
        let event = unsafe {
            (*operation.overlapped).InternalHigh = length;
            (*operation.overlapped).Internal = status_of(code);
            (*operation.overlapped).hEvent
        };
        self.signal(event.addr(), true);
    }

    fn signal(&mut self, event: usize, now: bool) {
        if let Some(Object::Event { signaled }) = self.objects.get_mut(&event) {
            *signaled = now;
        }
    }

    /// `CreateIoCompletionPort` with a file.
    pub(super) fn bind(&mut self, handle: usize, bound: Bound) {
        let before = self.file(handle).bound.replace(bound);
        assert!(before.is_none(), "the handle is already bound");
    }

    /// Takes a packet from the port of the library.
    pub(super) fn take_packet(&mut self) -> Option<Packet> {
        self.take(|bound| matches!(bound, Bound::Library { .. }))
    }

    /// Takes a packet from the port with this handle (`GetQueuedCompletionStatus`).
    pub(super) fn take_packet_of(&mut self, handle: usize) -> Option<Packet> {
        self.take(|bound| matches!(bound, Bound::Port { port, .. } if *port == handle))
    }

    fn take(&mut self, is_meant: impl Fn(&Bound) -> bool) -> Option<Packet> {
        let meant = |(index, packet): (usize, &Packet)| is_meant(&packet.bound).then_some(index);
        let meant: Vec<usize> = self.packets.iter().enumerate().filter_map(meant).collect();
        let index = match self.options.strict {
            true => *meant.first()?,
            false if meant.is_empty() => return None,
            false => meant[self.rng.usize(..meant.len())],
        };
        Some(self.packets.remove(index))
    }
}

/// The arguments of `CreateNamedPipe`.
#[derive(Debug)]
pub(super) struct NewInstance {
    pub(super) name: String,
    pub(super) first: bool,
    pub(super) keeps_messages: bool,
    pub(super) reads_messages: bool,
    pub(super) limit: u32,
    pub(super) in_quota: usize,
    pub(super) out_quota: usize,
    pub(super) descriptor: Option<Descriptor>,
}

impl Instance {
    /// What remains for a client that was disconnected.
    fn disconnected(name: String, client: usize) -> Self {
        Self {
            name,
            state: Connection::Disconnected,
            server: None,
            client: Some(client),
            connects: Vec::new(),
            to_server: Queue::default(),
            to_client: Queue::default(),
            quality: None,
            client_token: None,
        }
    }
}

impl Queue {
    fn free(&self) -> usize {
        let used: usize = self
            .messages
            .iter()
            .filter(|message| !message.is_pending())
            .map(Message::left)
            .sum();
        self.quota.saturating_sub(used)
    }
}

impl Message {
    fn is_pending(&self) -> bool {
        matches!(self.data, Data::Pending(_))
    }

    fn left(&self) -> usize {
        let length = match &self.data {
            Data::Copied(bytes) => bytes.len(),
            Data::Pending(write) => write.length,
        };
        length - self.read
    }

    /// Copies as much as fits after the first `filled` bytes of a read's buffer. Returns the length
    /// copied.
    fn copy_to(&mut self, read: &Operation, filled: usize) -> usize {
        let length = self.left().min(read.length - filled);
        let source = match &self.data {
            Data::Copied(bytes) => bytes.as_ptr(),
            Data::Pending(write) => write.buffer.cast_const(),
        };
        // SAFETY: both operations are in flight, so their buffers are valid; neither length is
        // exceeded.
        unsafe {
            let target = read.buffer.add(filled);
            ptr::copy_nonoverlapping(source.add(self.read), target, length);
        }
        self.read += length;
        length
    }

    /// Copies the rest of a pending write's data, so that its buffer is no longer needed.
    fn copy(&mut self) {
        if let Data::Pending(write) = &self.data {
            // SAFETY: the write is in flight, so its buffer is valid.
            let bytes = unsafe { std::slice::from_raw_parts(write.buffer, write.length) };
            self.data = Data::Copied(bytes[self.read..].to_vec());
            self.read = 0;
        }
    }

    /// The pending write of this message, if any.
    fn write(self) -> Option<Operation> {
        match self.data {
            Data::Pending(write) => Some(write),
            Data::Copied(_) => None,
        }
    }
}

/// Overwrites the unused part of a read's buffer, whose contents are unspecified.
fn scribble(read: &Operation, length: usize) {
    // A few bytes are enough for a test to notice.
    let rest = (read.length - length).min(64);
    // SAFETY: the read is in flight, so its buffer is valid.
    unsafe { ptr::write_bytes(read.buffer.add(length), 0xa5, rest) };
}

/// The status in an `OVERLAPPED` for an error code.
fn status_of(code: u32) -> usize {
    let status: u32 = match code {
        ERROR_SUCCESS => 0,
        ERROR_MORE_DATA => 0x8000_0005,
        ERROR_OPERATION_ABORTED => 0xc000_0120,
        ERROR_BROKEN_PIPE => 0xc000_014b,
        ERROR_NO_DATA => 0xc000_00b1,
        ERROR_PIPE_NOT_CONNECTED => 0xc000_00b0,
        code => 0xc007_0000 | code,
    };
    status as usize
}

/// The error code for a status in an `OVERLAPPED`.
pub(super) fn code_of(status: usize) -> u32 {
    match status as u32 {
        0 => ERROR_SUCCESS,
        0x8000_0005 => ERROR_MORE_DATA,
        0xc000_0120 => ERROR_OPERATION_ABORTED,
        0xc000_014b => ERROR_BROKEN_PIPE,
        0xc000_00b1 => ERROR_NO_DATA,
        0xc000_00b0 => ERROR_PIPE_NOT_CONNECTED,
        status => status & 0xffff,
    }
}
