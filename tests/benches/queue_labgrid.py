"""Drives labgrid's coordinator for the benchmark `queue`: prints, per round, milliseconds from a place that is given back to the place that
is the next reservation's.

A place that is given back is not looked at in the same step: the next step that anything causes gives it to somebody, or the coordinator's
own, every 15 s. So there are two figures: `quiet`, when nothing else comes, and `busy`, when one more client asks right behind.

    PYTHON queue_labgrid.py COORDINATOR PLACES CLASSES RESERVATIONS

As many reservations as places hold one each; the others wait, one class after the other, and are asked for twice a minute, because one
that nobody asks for is dropped after a minute.
"""

import asyncio
import socket
import subprocess
import sys
import tempfile
import time

import grpc
from labgrid.remote.generated import labgrid_coordinator_pb2 as wire
from labgrid.remote.generated import labgrid_coordinator_pb2_grpc as services

ROUNDS = {"busy": 200, "quiet": 4}
START_S_MAX = 30
ROUND_S_MAX = 60
ASK_AGAIN_S = 30


class Client:
    """One client's stream: knows whose each place is."""

    def __init__(self, channel):
        self.stub = services.CoordinatorStub(channel)
        self.reserved = {}
        self.changed = asyncio.Event()
        self.outgoing = asyncio.Queue()

    async def start(self):
        self.task = asyncio.create_task(self.listen())
        hello = wire.ClientInMessage()
        hello.startup.version = "bench"
        hello.startup.name = "bench/bench"
        self.outgoing.put_nowait(hello)
        subscribe = wire.ClientInMessage()
        subscribe.subscribe.all_places = True
        self.outgoing.put_nowait(subscribe)
        sync = wire.ClientInMessage()
        sync.sync.id = 1
        self.outgoing.put_nowait(sync)
        await self.changed.wait()

    async def say(self):
        while True:
            yield await self.outgoing.get()

    async def listen(self):
        async for message in self.stub.ClientStream(self.say()):
            for update in message.updates:
                if update.WhichOneof("kind") == "place":
                    self.reserved[update.place.name] = update.place.reservation
            self.changed.set()

    async def until(self, condition):
        while not condition():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), ROUND_S_MAX)

    async def reserve(self, group):
        request = wire.CreateReservationRequest(prio=0)
        request.filters["main"].filter["class"] = f"c{group}"
        return (await self.stub.CreateReservation(request)).reservation.token


async def keep_alive(client, waiting):
    while True:
        started = time.monotonic()
        for token in list(waiting):
            if token in waiting:
                try:
                    await client.stub.PollReservation(wire.PollReservationRequest(token=token))
                except grpc.aio.AioRpcError:
                    pass
                await asyncio.sleep(ASK_AGAIN_S / (2 * max(1, len(waiting))))
        await asyncio.sleep(max(0.1, ASK_AGAIN_S - (time.monotonic() - started)))


async def drive(address, places, classes, reservations):
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), START_S_MAX)
        client = Client(channel)
        await client.start()
        for number in range(places):
            name = f"place{number}"
            await client.stub.AddPlace(wire.AddPlaceRequest(name=name))
            await client.stub.SetPlaceTags(
                wire.SetPlaceTagsRequest(placename=name, tags={"class": f"c{number % classes}"})
            )
        holders = {}
        for number in range(places):
            token = await client.reserve(number % classes)
            await client.until(lambda: token in client.reserved.values())
            place = next(name for name, other in client.reserved.items() if other == token)
            await client.stub.AcquirePlace(wire.AcquirePlaceRequest(placename=place))
            holders[place] = token
        waiting = {}
        keeper = asyncio.create_task(keep_alive(client, waiting))
        for number in range(max(0, reservations - places)):
            waiting[await client.reserve(number % classes)] = None
        print(f"{len(holders)} places are held, {len(waiting)} reservations wait", file=sys.stderr)
        kinds = [kind for kind, count in ROUNDS.items() for _ in range(count)]
        for number, kind in enumerate(kinds):
            place = f"place{number % places}"
            token = holders[place]
            started = time.perf_counter()
            await client.stub.ReleasePlace(wire.ReleasePlaceRequest(placename=place))
            await client.stub.CancelReservation(wire.CancelReservationRequest(token=token))
            if kind == "busy":
                waiting[await client.reserve(number % classes)] = None
            await client.until(lambda: client.reserved.get(place) not in (token, "", None))
            print(f"{kind} {(time.perf_counter() - started) * 1e3:.3f}", flush=True)
            holders[place] = client.reserved[place]
            waiting.pop(holders[place], None)
            await client.stub.AcquirePlace(wire.AcquirePlaceRequest(placename=place))
        keeper.cancel()


def main():
    coordinator = sys.argv[1]
    places, classes, reservations = (int(word) for word in sys.argv[2:5])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([coordinator, "-l", address], cwd=folder, **silent)
        try:
            asyncio.run(drive(address, places, classes, reservations))
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
