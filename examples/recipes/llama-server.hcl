# A recipe: how an engine is built on this machine. `apiary engine install recipe:llama-server.hcl` carries it out. Put the address
# and the digest of the sources that you use into it, and allow its programs in the configuration:
#
#   provisioner "recipe" {
#     tools = ["cmake"]
#   }
#
# {os}, {arch} and {platform} ("linux-amd64") are filled in, and in arguments and variables of programs {engine}, the folder in which
# the engine is made and all that a program may leave behind, and {jobs}, the number of processors. Steps are taken in their order.

# Both become the name of the engine's folder: small letters, digits, dots and dashes.
name    = "llama-server"
version = "0.4.0"

# What is fetched: .tar.gz or .zip, https, proved by its digest. With platform = "linux-amd64" it is for that one only.
file "source.tar.gz" {
  url    = "https://downloads.example.org/llama.cpp-0.4.0.tar.gz"
  sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
}

extract {
  file   = "source.tar.gz"
  prefix = "llama.cpp-0.4.0/" # taken off the names; what is not below it is left out
  into   = "src"
}

# Programs run without a shell and, where the system permits it, without a network; network = true lets them have it.
run {
  tool = "cmake"
  args = [
    "-S", "src", "-B", "build", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
  ]
}

run {
  tool    = "cmake"
  args    = ["--build", "build", "--target", "llama-server", "--parallel", "{jobs}"]
  timeout = "1h" # default: 30m
}

run {
  tool = "cmake"
  args = ["-E", "make_directory", "bin"]
}

run {
  tool = "cmake"
  args = ["-E", "copy", "build/bin/llama-server", "bin/llama-server"]
}

run {
  tool = "cmake"
  args = ["-E", "remove_directory", "build"]
}

expect {
  path       = "bin/llama-server"
  executable = true
  message    = "The build made no llama-server; look into its output above."
}

# How the server is started. Without this block the engine is a folder with llama.cpp's libraries. It speaks the OpenAI API at {port}.
launch {
  path  = "bin/llama-server"
  args  = ["--model", "{model}", "--alias", "{model_name}", "--host", "127.0.0.1", "--port", "{port}", "--threads", "{threads}"]
  ready = "/health"
}
