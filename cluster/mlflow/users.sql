-- Users and their rights, apart from the runs; made with the database, at its first start.
CREATE DATABASE users;
