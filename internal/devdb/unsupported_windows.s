// Windows has neither the locks nor the sockets that this package needs. The line below is no
// instruction: the assembler prints it, and the build stops.
"Latch does not run on Windows: use WSL or Docker, as the README says"
