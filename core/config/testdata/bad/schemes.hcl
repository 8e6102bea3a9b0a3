worker "zipped" {
  adapter = "native"
  source  = "zip:x"
}
model "remote" {
  source = "ftp:x"
}
model "typo" {
  source = "buitin:stories260k"
}
