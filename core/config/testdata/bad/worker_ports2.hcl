queen {
  listen = "127.0.0.1:7999"
}

worker "echo" {
  adapter = "echo"
  args    = ["--bind-all", "--log-file=/tmp/x"]
}
