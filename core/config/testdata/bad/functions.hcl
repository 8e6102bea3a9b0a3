agent {
  name     = evn("HOME")
  data_dir = file("does-not-exist")
  roles    = [var.x]
}

model "m" {
  source  = env()
  aliases = env(null)
}
