"""First names and cities, separated by white space."""

NAMES = """
Aaron Abigail Ada Adam Adele Adrian Agatha Agnes Aisha Alan Albert Alexander Alfred Alice Alma Amara Amelia Amir Amos
Amy Anders Andrew Angela Anika Anita Anna Anthony Anton Arjun Arnold Arthur Astrid Audrey August Aurora Ava Barbara
Basil Beatrice Ben Benjamin Bernard Bertha Bianca Boris Brenda Brian Bridget Bruno Caleb Calvin Camille Carla Carlos
Carmen Caroline Catherine Cecil Celia Chad Charles Charlotte Chen Chloe Christopher Clara Clarence Claude Clement
Colin Conrad Cora Cornelia Curtis Cyril Daisuke Dalia Daniel Daphne David Deborah Delia Denise Dennis Derek Diana
Diego Dmitri Dolores Dominic Donald Dora Doris Dorothy Douglas Duncan Dylan Edgar Edith Edmund Edward Edwin Eileen
Elaine Eleanor Elena Elias Elijah Elise Elizabeth Ella Ellen Elliot Elsa Emil Emily Emma Enrique Eric Erika Ernest
Esther Ethan Eugene Eva Evelyn Ezra Fabian Farah Fatima Felix Fiona Flora Florence Frances Francis Frank Franz
Frederick Freya Gabriel Gareth Gemma Geoffrey George Georgia Gerald Gertrude Gilbert Giovanni Gloria Gordon Grace
Graham Greta Gustav Gwen Hannah Hans Harold Harriet Harvey Hassan Hazel Hector Heidi Helen Helga Henry Herbert Hilda
Hiroshi Holly Horace Howard Hubert Hugh Hugo Ian Ibrahim Ida Imogen Ines Ingrid Irene Iris Isaac Isabel Ivan Ivy
Jack Jacob Jacqueline Jamal James Janet Jasmine Jason Javier Jean Jennifer Jeremy Jerome Jessica Joan Joel Johanna
John Jonas Jonathan Joseph Josephine Joshua Joyce Juan Judith Julia Julian Juliet Kamal Karen Karl Kate Keiko Keith
Kenneth Kevin Kiran Klaus Lana Lars Laura Laurence Leah Leila Lena Leo Leonard Leopold Leroy Lester Lewis Lidia Lila
Lillian Lina Linda Linus Lionel Louis Louise Lucas Lucia Lucy Ludwig Luke Luna Lydia Mabel Magnus Malcolm Manuel
Marcel Marcus Margaret Maria Marian Marina Mario Marion Mark Marta Martha Martin Mary Matilda Matthew Maurice Max
Maya Melanie Melissa Mia Michael Miguel Mildred Miles Milo Mina Miranda Miriam Mohammed Moira Molly Monica Mona
Morris Moses Muriel Myra Nadia Naomi Natalie Nathan Neil Nellie Nicholas Nico Nigel Nina Noah Nora Norman Octavia
Olaf Olga Oliver Olivia Omar Oscar Otto Owen Pablo Pamela Patricia Patrick Paul Paula Pauline Pedro Percy Peter
Petra Philip Phoebe Phyllis Pierre Priya Quentin Rachel Rafael Ralph Ramona Raymond Rebecca Reginald Rhoda Richard
Rita Robert Roberta Robin Roderick Rodney Roger Roland Ronald Rosa Rosalind Rowan Roy Rufus Rupert Ruth Sabrina
Salim Samantha Samuel Sandra Sarah Sasha Saul Sebastian Selma Serena Seth Sharon Sheila Sidney Sigrid Silas Simon
Sofia Solomon Sonia Sophie Stanley Stefan Stella Stephen Stuart Susan Sven Sylvia Tamara Tara Tariq Tatiana Teresa
Thea Theodore Thomas Tilda Timothy Tobias Tomas Tristan Ulrich Una Ursula Valerie Vanessa Vera Veronica Victor
Victoria Vincent Viola Violet Virginia Vivian Vladimir Wallace Walter Wanda Warren Wendy Werner Wilbur Wilfred
William Winifred Winston Xavier Yasmin Yolanda Yuki Yusuf Yvonne Zachary Zara Zelda Zoe
"""

CITIES = """
Aachen Aarhus Aberdeen Abuja Accra Adelaide Agra Ahmedabad Albany Aleppo Alexandria Algiers Alicante Almaty Amman
Amsterdam Anchorage Ankara Antwerp Arequipa Arles Arnhem Asmara Athens Atlanta Auckland Augsburg Austin Avignon Baghdad
Baku Baltimore Bamako Bandung Bangalore Bangkok Barcelona Basel Basra Bath Beijing Beirut Belfast Belgrade Bergamo
Bergen Berlin Bern Bilbao Birmingham Bogota Bologna Bonn Bordeaux Boston Bradford Braga Brasilia Bratislava Bremen
Brest Brighton Brisbane Bristol Brno Bruges Brussels Bucharest Budapest Buffalo Bursa Busan Cadiz Cagliari Cairo
Calais Calgary Cambridge Canberra Canterbury Caracas Cardiff Cartagena Casablanca Charleston Chengdu Chennai Chester
Chicago Cincinnati Cleveland Cologne Colombo Columbus Conakry Copenhagen Cordoba Cork Coventry Cracow Cremona Curitiba
Cusco Dakar Dallas Damascus Danzig Darwin Debrecen Delft Delhi Denver Derby Detroit Dhaka Dijon Doha Dortmund Dover
Dresden Dublin Dubrovnik Dundee Durban Durham Edinburgh Edmonton Eindhoven Erfurt Esfahan Essen Exeter Ferrara Fez
Florence Frankfurt Freetown Freiburg Galway Gdansk Geneva Genoa Ghent Gijon Glasgow Gloucester Gothenburg Granada
Graz Grenoble Guadalajara Guayaquil Haifa Halifax Hamburg Hamilton Hanoi Hanover Harare Hartford Havana Heidelberg
Helsinki Hereford Hiroshima Hobart Honolulu Houston Hyderabad Innsbruck Inverness Islamabad Istanbul Izmir Jaipur
Jakarta Jerusalem Johannesburg Kabul Kampala Karachi Kassel Kathmandu Kazan Khartoum Kiel Kigali Kingston Kinshasa
Kobe Kolkata Kosice Kyoto Lagos Lahore Lancaster Lausanne Leeds Leicester Leiden Leipzig Liege Lille Lima Limerick
Limoges Lincoln Linz Lisbon Liverpool Ljubljana Lodz London Luanda Lublin Lucerne Lucknow Lusaka Luxor Lyon Madrid
Malaga Malmo Manaus Manchester Mandalay Manila Maputo Marrakesh Marseille Medellin Melbourne Memphis Messina Miami
Milan Milwaukee Minneapolis Minsk Modena Mogadishu Mombasa Monrovia Montevideo Montreal Moscow Multan Mumbai Munich
Murcia Muscat Nagasaki Nagoya Nairobi Nancy Nantes Naples Nashville Newcastle Niamey Nice Nicosia Norwich Nottingham
Nuremberg Oakland Odense Odessa Omaha Oporto Osaka Oslo Ostrava Ottawa Oviedo Oxford Padua Palermo Paris Parma Patna
Perth Perugia Peshawar Philadelphia Phoenix Pisa Pittsburgh Plovdiv Plymouth Portland Porto Portsmouth Potsdam
Poznan Prague Pretoria Pune Quebec Quito Rabat Raleigh Ravenna Reading Recife Regina Reims Rennes Reykjavik Riga
Rochester Rome Rostock Rotterdam Rouen Salamanca Salerno Salisbury Salzburg Samarkand Santiago Sapporo Sarajevo
Savannah Seattle Segovia Sendai Seoul Seville Shanghai Sheffield Siena Singapore Skopje Sofia Southampton Split
Stavanger Stockholm Strasbourg Stuttgart Suva Swansea Sydney Syracuse Szeged Tabriz Taipei Tallinn Tampere Tangier
Tashkent Tbilisi Tehran Tokyo Toledo Toronto Toulouse Trento Trieste Tripoli Tromso Trondheim Tucson Tulsa Tunis
Turin Uppsala Utrecht Valencia Valletta Vancouver Varna Venice Verona Vicenza Vienna Vilnius Warsaw Washington
Wellington Winchester Windhoek Winnipeg Worcester Wroclaw Wuhan Yangon Yerevan Yokohama York Zagreb Zaragoza Zurich
"""
