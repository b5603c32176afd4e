"""xllamacpp's HTTP server on a file, until a signal: python xllamacpp_server.py FILE PORT THREADS CLIENTS"""

import signal
import sys

import xllamacpp

file, port, threads, clients = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path = file
params.port = port
params.n_parallel = clients
# A slot for each client, each with room for a prompt and its answer.
params.n_ctx = 1024 * clients
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
signal.sigwait({signal.SIGTERM, signal.SIGINT})
