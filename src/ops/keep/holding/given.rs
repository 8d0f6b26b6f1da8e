//! Sockets that the program was given, or that were taken from one that runs: one for each address.

use std::os::fd::OwnedFd;

use crate::error::{Kind, Result};
use crate::runtime;
use crate::service::address::{Address, Listen};
use crate::service::message::Order;
use crate::service::socket::Listener;
use crate::sys::socket::Socket;
use crate::sys::socket_table::{Descriptor, descriptor_of};

/// The sockets, and which of them were there before the instance.
#[derive(Debug)]
pub(super) struct Given {
    listeners: Vec<Listener>,
    /// The process that made them; 0 if we did.
    program: i32,
}

impl Given {
    /// Takes what was inherited, by the index of its address, and makes what is missing.
    pub(super) fn prepare(order: &Order, mut inherited: Vec<(usize, Socket)>) -> Result<Self> {
        let mut listeners = Vec::new();
        for (index, listen) in order.listen.iter().enumerate() {
            listeners.push(match inherited.iter().position(|(of, _)| *of == index) {
                Some(place) => Listener::inherit(listen, inherited.swap_remove(place).1)?,
                None => make(order, index, listen)?,
            });
        }
        Ok(Self { listeners, program: 0 })
    }

    /// Those of a program that made them itself.
    pub(super) fn of_program(listeners: Vec<Listener>, program: i32) -> Self {
        Self { listeners, program }
    }

    /// Looks whether the program has each of several sockets at one address. Whether one was let go of.
    pub(super) fn refresh(&mut self) -> Result<bool> {
        let before = self.listeners.len();
        let mut index = 0;
        while let Some(listener) = self.listeners.get(index) {
            let address = &listener.listen().address;
            let is_alone = self.listeners.iter().filter(|other| other.listen().address == *address).count() == 1;
            if is_alone || self.has(listener.socket())? {
                index += 1;
            } else {
                self.listeners.remove(index);
            }
        }
        Ok(self.listeners.len() != before)
    }

    fn has(&self, socket: &Socket) -> Result<bool> {
        let first = Descriptor { process: self.program, number: 0 };
        Ok(descriptor_of(socket.inode()?, first)?.is_some())
    }

    pub(super) fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// What the program finds as descriptors 3 and up.
    pub(super) fn to_pass_on(&self) -> Result<Vec<runtime::Listen>> {
        let pass = |listener: &Listener| {
            let socket = listener.socket().duplicate()?.into();
            Ok(runtime::Listen { socket, name: listener.listen().name.to_string() })
        };
        self.listeners.iter().map(pass).collect()
    }

    pub(super) fn publish(&mut self) -> Result<()> {
        self.listeners.iter_mut().try_for_each(Listener::publish)
    }

    pub(super) fn hand_out(&self) -> Result<Vec<(Listen, OwnedFd)>> {
        self.listeners
            .iter()
            .map(|listener| Ok((listener.listen().clone(), listener.socket().duplicate()?.into())))
            .collect()
    }

    pub(super) fn release(&mut self) {
        self.listeners.clear();
    }

    /// Once all have been tried: the first failure.
    pub(super) fn withdraw(&mut self) -> Result<()> {
        let mut first = Ok(());
        for listener in &mut self.listeners {
            first = first.and(listener.withdraw());
        }
        first
    }
}

/// A socket for an address. A port that was chosen is asked for again; if somebody else has it by now, another one is chosen.
fn make(order: &Order, index: usize, listen: &Listen) -> Result<Listener> {
    let chosen = order.definition.listen.get(index).filter(|declared| declared.address == Address::Auto);
    match (Listener::make(listen, order.company()), chosen) {
        (Err(error), Some(auto)) if error.kind() == Kind::Busy => Listener::make(auto, order.company()),
        (made, _) => made,
    }
}
